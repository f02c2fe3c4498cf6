"""func gets its own tensors: it may mark them or make leaves of them, and the caller's tensors stay unchanged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import odenet
import odenet.compat.torchdiffeq as drop_in
from compat.sides import close, double

# marks cannot be recorded; such an f is solved as without compile=True
pytestmark = pytest.mark.filterwarnings("ignore:compile=True. solving without compiled code:UserWarning")

K = 0.7
NATIVE = {g: {"gradient": g} for g in ("discrete", "backprop", "adjoint", "gauss", "forward")} | {
    "reversible": {"gradient": "reversible", "step": 0.05},
    "constant steps": {"method": "rk4", "step": 0.05},
    "compiled": {"compile": True},
}


def native(**how: Any) -> Callable[..., Tensor]:
    def solved(f: Any, y0: Tensor, t: Tensor, *args: Tensor) -> Tensor:
        return odenet.solve(f, y0, t, args=args, rtol=1e-8, atol=1e-10, **how).ys

    return solved


def dropped(name: str, **how: Any) -> Callable[..., Tensor]:
    def solved(f: Any, y0: Tensor, t: Tensor, *args: Tensor) -> Tensor:
        more = {"adjoint_params": args} if name == "odeint_adjoint" else {}
        return getattr(drop_in, name)(lambda t, y: f(t, y, *args), y0, t, **more, **how)

    return solved


SOLVES = {name: native(**how) for name, how in NATIVE.items()} | {
    "odeint": dropped("odeint"),
    "odeint rk4": dropped("odeint", method="rk4", options={"step_size": 0.05}),
    "odeint_adjoint": dropped("odeint_adjoint"),
    "odeint_adjoint rk4": dropped("odeint_adjoint", method="rk4", options={"step_size": 0.05}),
}
ALL = pytest.mark.parametrize("name", SOLVES)


def by_zeros(t: Tensor, y: Tensor, k: Tensor) -> Tensor:
    """A new leaf at each evaluation, of the shape of y."""
    with torch.enable_grad():
        z = torch.zeros_like(y).requires_grad_(True)
        (slope,) = torch.autograd.grad((torch.exp(z) * 3.0).sum(), z, create_graph=True)
    return -k * y * slope / 3.0


def by_time(t: Tensor, y: Tensor, k: Tensor) -> Tensor:
    """A new leaf at each evaluation, from the time."""
    with torch.enable_grad():
        s = t.clone().detach().requires_grad_(True)
        (slope,) = torch.autograd.grad(s * s, s, create_graph=True)
    return -k * y * (slope / 2 + 1.0) / (t + 1.0)


def by_state(t: Tensor, y: Tensor, k: Tensor) -> Tensor:
    """A Hamiltonian's gradient at a copy of the state; the caller's derivative flows through it."""
    with torch.enable_grad():
        x = y if y.requires_grad else y.detach().requires_grad_(True)
        (slope,) = torch.autograd.grad(0.5 * (k * x * x).sum(), x, create_graph=True)
    return -slope


@pytest.mark.parametrize("name", [name for name in SOLVES if name != "compiled"])  # autograd inside f is not compiled
@pytest.mark.parametrize("f", [by_zeros, by_time, by_state])
def test_leaves_made_inside_func(name: str, f: Callable[..., Tensor]) -> None:
    """y' = -k y, from 2 over [0, 1], in three disguises."""
    k, y0 = torch.tensor(K, dtype=torch.float64, requires_grad=True), double(2.0, 1.0).requires_grad_()
    ys = SOLVES[name](f, y0, double(0.0, 1.0), k)
    decay = torch.exp(-k)
    close(ys[-1].detach(), (y0 * decay).detach(), 1e-5)
    got, want = (torch.autograd.grad(x.sum(), (k, y0)) for x in (ys[-1], y0 * decay))
    close(got, want, 1e-4)


def marks(t: Tensor, y: Tensor, *args: Tensor) -> Tensor:
    for x in (t, y, *args):
        if x.is_leaf:
            x.requires_grad_(True)
    return -y


@ALL
@pytest.mark.parametrize("graph", [True, False])
def test_the_callers_tensors_keep_their_flags(name: str, graph: bool) -> None:
    """numpy() raises for a tensor that requires a gradient."""
    if name.startswith("odeint"):
        y0, t = double(2.0, 1.0), double(0.0, 0.5, 1.0)
        with torch.set_grad_enabled(graph):
            SOLVES[name](lambda t, y: marks(t, y), y0, t)
        mine = (y0, t)
    else:
        y0, t, k = double(2.0, 1.0), double(0.0, 0.5, 1.0), torch.tensor(K, dtype=torch.float64)
        with torch.set_grad_enabled(graph):
            SOLVES[name](marks, y0, t, k)
        mine = (y0, t, k)
    for x in mine:
        assert not x.requires_grad
        x.numpy()


@pytest.mark.parametrize("per_sample", [False, True])
def test_tensors_of_a_tuple_or_a_batch_keep_their_flags(per_sample: bool) -> None:
    y0 = {"a": torch.ones(2, 3, dtype=torch.float64), "b": torch.ones(2, dtype=torch.float64)}
    args = {"k": torch.ones(2, dtype=torch.float64)}

    def f(t: Tensor, y: dict[str, Tensor], given: dict[str, Tensor]) -> dict[str, Tensor]:
        for x in (t, *y.values(), *given.values()):
            if x.is_leaf:
                x.requires_grad_(True)
        return {key: -x for key, x in y.items()}

    odenet.solve(f, y0, [0.0, 1.0], args=(args,), per_sample=per_sample)
    pair = (torch.ones(2, dtype=torch.float64), torch.ones(3, dtype=torch.float64))
    for function, more in ((drop_in.odeint, {}), (drop_in.odeint_adjoint, {"adjoint_params": ()})):
        function(lambda t, y: tuple(-x.requires_grad_(True) for x in y), pair, double(0.0, 1.0), **more)
    assert not any(x.requires_grad for x in (*y0.values(), *args.values(), *pair))
