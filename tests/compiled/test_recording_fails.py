"""A recording that fails leaves the interpreter as it was, whatever failed."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

import odenet
from odenet.compat import torchdiffeq as drop_in
from slow_cases import slow_unless

W = torch.tensor([[0.2, 0.5], [-0.5, 0.1]], dtype=torch.float64)
Field = Callable[[Tensor, Tensor], Tensor]


def by_jacrev(t: Tensor, y: Tensor) -> Tensor:
    return torch.func.vmap(torch.func.jacrev(lambda x: torch.sin(x @ W)))(y).diagonal(dim1=-2, dim2=-1)


def by_jvp(t: Tensor, y: Tensor) -> Tensor:
    out, tangent = torch.func.jvp(lambda x: torch.sin(x @ W), (y,), (torch.ones_like(y),))
    print(end="")  # no graph holds that
    return out + tangent


def by_grad_within_vmap(t: Tensor, y: Tensor) -> Tensor:
    return torch.func.vmap(torch.func.grad(lambda x: (float(len(str(x.shape))) * x.sin()).sum()))(y)


def by_branch_within_vmap(t: Tensor, y: Tensor) -> Tensor:
    def of(x: Tensor) -> Tensor:
        print(end="")
        return x.sin()

    return torch.func.vmap(of)(y)


def by_numpy(t: Tensor, y: Tensor) -> Tensor:
    return torch.from_numpy(np.sin(y.detach().numpy()))


def by_branch(t: Tensor, y: Tensor) -> Tensor:
    return y.sin() if y.sum() > 0 else y.cos()


def by_dual(t: Tensor, y: Tensor) -> Tensor:
    with forward_ad.dual_level():
        print(end="")
        return forward_ad.unpack_dual((forward_ad.make_dual(y, torch.ones_like(y))).sin()).tangent


def without_grad(t: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        print(end="")
        return y.sin()


def under_autocast(t: Tensor, y: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        print(end="")
        return y.sin()


def with_checkpoint(t: Tensor, y: Tensor) -> Tensor:
    def of(x: Tensor) -> Tensor:
        print(end="")
        return x.sin()

    return checkpoint(of, y, use_reentrant=False)


class Noting(torch.overrides.TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def in_a_mode(t: Tensor, y: Tensor) -> Tensor:
    with Noting():
        print(end="")
        return y.sin()


def with_hooks(t: Tensor, y: Tensor) -> Tensor:
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
        print(end="")
        return y.sin()


def another_default_dtype(t: Tensor, y: Tensor) -> Tensor:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)
    try:
        print(end="")
        return y.sin()
    finally:
        torch.set_default_dtype(before)


class Wave(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        print(end="")
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx: Any, bar: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return bar * ctx.saved_tensors[0].cos()


def by_a_function_of_its_own(t: Tensor, y: Tensor) -> Tensor:
    return Wave.apply(y)


def with_an_inner_solve(t: Tensor, y: Tensor) -> Tensor:
    return odenet.solve(lambda s, x: x.sin(), y, [0.0, 0.1], rtol=1e-3).y1


def gradient_inside(t: Tensor, y: Tensor) -> Tensor:
    with torch.enable_grad():
        x = y.detach().requires_grad_()
        print(end="")
        return torch.autograd.grad(-x.cos().sum(), x)[0]


FIELDS: list[Field] = [
    by_jacrev,
    by_jvp,
    by_grad_within_vmap,
    by_branch_within_vmap,
    by_numpy,
    by_branch,
    by_dual,
    without_grad,
    under_autocast,
    with_checkpoint,
    in_a_mode,
    with_hooks,
    another_default_dtype,
    by_a_function_of_its_own,
    with_an_inner_solve,
    gradient_inside,
]


def state_of_the_interpreter() -> tuple[Any, ...]:
    functorch = torch._C._functorch
    return (
        functorch.get_dynamic_layer_stack_depth(),
        forward_ad._current_level,
        torch._C._len_torch_function_stack(),
        torch._C._len_torch_dispatch_stack(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_default_dtype(),
        torch.autograd.is_multithreading_enabled(),
        torch.are_deterministic_algorithms_enabled(),
    )


@contextmanager
def unchanged() -> Iterator[None]:
    before = state_of_the_interpreter()
    yield
    assert state_of_the_interpreter() == before
    assert torch.ones(3).tolist() == [1.0, 1.0, 1.0]
    x = torch.ones(3, requires_grad=True)
    (x * x).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [2.0, 2.0, 2.0]
    assert torch.func.vmap(torch.func.grad(lambda s: s * s))(torch.ones(2)).tolist() == [2.0, 2.0]


@pytest.mark.parametrize("per_sample", slow_unless([False, True], False), ids=["joint", "per sample"])
@pytest.mark.parametrize("f", slow_unless(FIELDS, FIELDS[0]), ids=lambda f: f.__name__)
def test_the_interpreter_is_as_it_was_and_the_solution_right(f: Field, per_sample: bool) -> None:
    y0 = torch.tensor([[0.3, -0.2], [0.9, 0.4]], dtype=torch.float64)
    options: dict[str, Any] = {"per_sample": per_sample, "method": "rk4", "step": 0.25}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with unchanged():
            mine = odenet.solve(f, y0, [0.0, 1.0], compile=True, **options).y1
    torch.testing.assert_close(mine, odenet.solve(f, y0, [0.0, 1.0], **options).y1)


@pytest.mark.parametrize("error", [ValueError, KeyError, KeyboardInterrupt, MemoryError, RecursionError])
@pytest.mark.parametrize("where", ["f", "within vmap", "within jvp"])
def test_errors_of_f(where: str, error: type[BaseException]) -> None:
    def raising(x: Tensor) -> Tensor:
        raise error("of f's own")

    def f(t: Tensor, y: Tensor) -> Tensor:
        if where == "within vmap":
            return torch.func.vmap(raising)(y)
        return raising(y) if where == "f" else torch.func.jvp(raising, (y,), (y,))[1]

    with warnings.catch_warnings(), unchanged():
        warnings.simplefilter("ignore")
        with pytest.raises(error, match="of f's own"):
            odenet.solve(f, torch.ones(2, 2), [0.0, 1.0], compile=True)


@pytest.mark.parametrize("size", [2, 40_000])
@pytest.mark.parametrize("dropped_in", [False, True])
def test_a_divergence_by_torch_func_with_the_default_gradient(size: int, dropped_in: bool) -> None:
    """Hooks for saved tensors, which large states are weighed by, do not work inside of torch.func."""
    w = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    y0 = torch.linspace(0.1, 1, size, dtype=torch.float64).view(-1, 1)

    def f(t: Tensor, y: Tensor) -> Tensor:
        return torch.func.vmap(torch.func.jacrev(lambda x: torch.sin(w * x)))(y).squeeze(-1)

    def of(solve: Callable[..., Tensor]) -> Tensor:
        return torch.autograd.grad(solve().sum(), w)[0]

    ts, steps = torch.tensor([0.0, 1.0], dtype=torch.float64), {"method": "midpoint", "step": 0.25}
    expected = of(lambda: odenet.solve(f, y0, ts, gradient="backprop", **steps).y1)
    if dropped_in:
        mine = of(lambda: drop_in.odeint(f, y0, ts, method="midpoint", options={"step_size": 0.25})[-1])
    else:
        mine = of(lambda: odenet.solve(f, y0, ts, **steps).y1)
    torch.testing.assert_close(mine, expected)


@pytest.mark.slow
def test_a_process_of_its_own() -> None:
    """Without pytest around it, and to the interpreter's end."""
    program = (
        "import torch, odenet\n"
        "f = lambda t, y: torch.func.vmap(torch.func.jacrev(torch.sin))(y).diagonal(dim1=-2, dim2=-1)\n"
        "odenet.solve(f, torch.ones(2, 2), [0.0, 1.0], compile=True)\n"
        "print(torch.ones(3).tolist())\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("[1.0, 1.0, 1.0]")
