"""What f uses beside its arguments gets its gradient, as the closed form says, in every way to solve."""

from __future__ import annotations

import functools
import itertools
import math
import shutil
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.utils.checkpoint import checkpoint

import odenet
from captured.ways import EAGER, TIGHT, WAYS, WITHOUT_COMPILING, D, Way, column, native, number, ones
from odenet.errors import CaptureError
from slow_cases import slow_unless

Case = Callable[[], tuple[Callable[..., Any], Tensor, float]]
"""() -> f, a leaf, and the derivative of the mean of y(1) in it."""


def close(x: Tensor | None, expected: float) -> None:
    assert x is not None
    assert float(x) == pytest.approx(expected, rel=1e-6)


def a_tensor_and_one_computed_from_it() -> Any:
    k = number(0.5)
    a = 2 * k
    return lambda t, y: -(a + k) * y, k, -3 * math.exp(-1.5)


def a_chain_of_three() -> Any:
    k = number(0.2)
    a = 2 * k
    b = a * a + k
    return lambda t, y: -(a + b + k) * y, k, -(4 + 8 * 0.2) * math.exp(-(4 * 0.2 + 4 * 0.04))


def one_of_two_from_the_same() -> Any:
    k = number(0.5)
    a, b = (2 * k).exp().log(), 3 * k
    return lambda t, y: (a - b) * y, k, -math.exp(-0.5)


def a_view_of_a_parameter() -> Any:
    class Growth(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Parameter(torch.tensor(0.7646, dtype=D))
            self.A = self.a.view(1, 1)

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return y @ self.A

    f = Growth()
    return f, f.a, math.exp(0.7646)


def a_view_beside_its_parameter() -> Any:
    a = number(0.3)
    view = a.view(1, 1)
    return lambda t, y: y @ view + a * y, a, 2 * math.exp(0.6)


def knots_and_slopes_made_from_them() -> Any:
    k = number(1.0)
    knots = torch.tensor([0.4, 0.9], dtype=D) * k
    slopes = knots.diff()
    return lambda t, y: -(knots[0] + slopes[0] * column(t)) * y, k, -0.65 * math.exp(-0.65)


def softplus_of_a_parameter(used: bool) -> Any:
    class Decay(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.raw = nn.Parameter(torch.tensor(0.7, dtype=D))
            self.rate = softplus(self.raw)

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return -(self.rate + self.raw if used else self.rate) * y

    f, sigmoid, value = Decay(), 1 / (1 + math.exp(-0.7)), math.log(1 + math.exp(0.7))
    return f, f.raw, -(sigmoid + used) * math.exp(-(value + 0.7 * used))


def made_at_the_first_evaluation() -> Any:
    class Decay(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.raw = nn.Parameter(torch.tensor(0.7, dtype=D))
            self.rate: Tensor | None = None

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            if self.rate is None:
                self.rate = softplus(self.raw)
            return -self.rate * y

    f = Decay()
    return f, f.raw, -1 / (1 + math.exp(-0.7)) * math.exp(-math.log(1 + math.exp(0.7)))


def held_by_a_cache() -> Any:
    raw = number(0.7)

    @functools.cache
    def rate(order: int) -> Tensor:
        return softplus(raw) * order

    f = lambda t, y: -rate(1) * y  # noqa: E731
    return f, raw, -1 / (1 + math.exp(-0.7)) * math.exp(-math.log(1 + math.exp(0.7)))


def held_by_the_cache_of_a_method() -> Any:
    class Decay(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.raw = nn.Parameter(torch.tensor(0.7, dtype=D))

        @functools.lru_cache(None)  # noqa: B019
        def rate(self) -> Tensor:
            return softplus(self.raw)

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return -self.rate() * y

    f = Decay()
    return f, f.raw, -1 / (1 + math.exp(-0.7)) * math.exp(-math.log(1 + math.exp(0.7)))


def held_in_a_slot() -> Any:
    class Holder:
        __slots__ = ("rate", "raw")

    holder = Holder()
    holder.raw, holder.rate = number(0.7), None

    def f(t: Tensor, y: Tensor) -> Tensor:
        if holder.rate is None:
            holder.rate = softplus(holder.raw)
        return -holder.rate * y

    return f, holder.raw, -1 / (1 + math.exp(-0.7)) * math.exp(-math.log(1 + math.exp(0.7)))


def used_from_some_time_on() -> Any:
    k = number(0.5)
    a = 2 * k
    kept = [a]  # where f can be seen to reach it

    def f(t: Tensor, y: Tensor) -> Tensor:
        return torch.where(column(t) <= 0.5, 0.0 * y, -kept[0] * y) if float(t.max()) > 0.5 else 0.0 * y

    return f, k, -math.exp(-0.5)


def a_gradient_taken_inside() -> Any:
    """As flows write it: f marks what it is given."""
    a = number(0.4)

    def f(t: Tensor, y: Tensor) -> Tensor:
        with torch.enable_grad():
            t.requires_grad_(True)
            y.requires_grad_(True)
            return torch.autograd.grad((a * y.square() / 2).sum(), y, create_graph=True)[0]

    return f, a, math.exp(0.4)


def leaves_made_inside() -> Any:
    a = number(0.4)

    def f(t: Tensor, y: Tensor) -> Tensor:
        with torch.enable_grad():
            zero = torch.zeros_like(y).requires_grad_(True)
            s = t.clone().detach().requires_grad_(True)
            return a * (y + zero) + 0 * column(s)

    return f, a, math.exp(0.4)


def zeros_that_ask_for_a_gradient() -> Any:
    """As FFJORD's own field returns them for its further states: a leaf is the result."""
    a = number(0.4)
    made: list[Tensor] = []

    def f(t: Tensor, y: Tensor) -> Tensor:
        half = torch.zeros_like(y[:, :1]).requires_grad_(True)
        made.append(half)  # outlives the evaluation
        return a * (y + half) * nn.Parameter(torch.ones(1, dtype=D))

    return f, a, math.exp(0.4)


def leaves_beside_a_stopped_gradient() -> Any:
    """a.detach() is a new leaf in the memory of a, which f does not make."""
    a = number(0.4)

    def f(t: Tensor, y: Tensor) -> Tensor:
        with torch.enable_grad():
            z = y.detach().requires_grad_(True)
            (slope,) = torch.autograd.grad((a * z.square() / 2).sum(), z, create_graph=True)
        return slope + a.detach() * (y - z)

    return f, a, math.exp(0.4)


def parameters_made_of_what_is_captured() -> Any:
    a = number(0.4)
    return lambda t, y: a * y * (nn.Parameter(a.detach()) / a.data), a, math.exp(0.4)


def marked_and_checkpointed() -> Any:
    a = number(0.4)

    def f(t: Tensor, y: Tensor) -> Tensor:
        t.requires_grad_(True)
        y.requires_grad_(True)
        return checkpoint(lambda x, s: a * x + 0 * column(s), y, t, use_reentrant=False)

    return f, a, math.exp(0.4)


def hooked() -> Any:
    """A hook is called once, with the whole gradient."""
    a = number(0.4)
    a.register_hook(lambda g: 2 * g + 1)
    return lambda t, y: a * y, a, 2 * math.exp(0.4) + 1


def computed_and_hooked() -> Any:
    k = number(0.2)
    a = 2 * k
    a.register_hook(lambda g: 3 * g)
    return lambda t, y: a * y, k, 6 * math.exp(0.4)


def a_scripted_divergence() -> Any:
    """A trace by torch.func, as flow libraries write it."""
    w = torch.tensor([[0.2]], dtype=D, requires_grad=True)

    def drift(y: Tensor) -> Tensor:
        return y @ w

    def f(t: Tensor, y: Tensor) -> Tensor:
        trace = torch.func.vmap(torch.func.jacrev(drift))(y).diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True)
        return trace * y

    return f, w, math.exp(0.2)


CASES: dict[str, Case] = {
    "a tensor and one computed from it": a_tensor_and_one_computed_from_it,
    "a chain of three": a_chain_of_three,
    "two computed from the same": one_of_two_from_the_same,
    "a view of a parameter": a_view_of_a_parameter,
    "a view beside its parameter": a_view_beside_its_parameter,
    "knots and slopes": knots_and_slopes_made_from_them,
    "softplus": lambda: softplus_of_a_parameter(used=False),
    "softplus beside its parameter": lambda: softplus_of_a_parameter(used=True),
}
NOT_LATER = ("forward", "reversible")  # one refuses what is first used later, one is not accurate across a jump
EAGER_ONLY: dict[str, Case] = {
    "made at the first evaluation": made_at_the_first_evaluation,
    "held by a cache": held_by_a_cache,
    "held by the cache of a method": held_by_the_cache_of_a_method,
    "held in a slot": held_in_a_slot,
    "a gradient taken inside": a_gradient_taken_inside,
    "leaves made inside": leaves_made_inside,
    "leaves beside a stopped gradient": leaves_beside_a_stopped_gradient,
    "parameters made of what is captured": parameters_made_of_what_is_captured,
    "a divergence by torch.func": a_scripted_divergence,
    "zeros that ask for a gradient": zeros_that_ask_for_a_gradient,
    "marked and checkpointed": marked_and_checkpointed,
    "hooked": hooked,
    "computed and hooked": computed_and_hooked,
}


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # TorchDynamo looks for it
@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_closed_form(case: str, way: Way) -> None:
    f, leaf, expected = CASES[case]()
    way.solve(f, ones()).mean().backward()
    close(leaf.grad, expected)


@pytest.mark.skipif(shutil.which("g++") is None, reason="compile=True needs a C++ compiler")
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
@pytest.mark.parametrize("per_sample", slow_unless([False, True], False), ids=["joint", "per sample"])
def test_a_chain_compiled(per_sample: bool) -> None:
    """One of those above, for every run of the tests."""
    f, leaf, expected = a_chain_of_three()
    native("discrete", per_sample, compile=True).solve(f, ones()).mean().backward()
    close(leaf.grad, expected)


@pytest.mark.parametrize("way", WITHOUT_COMPILING, ids=str)
@pytest.mark.parametrize("case", EAGER_ONLY)
def test_closed_form_of_what_f_does_inside(case: str, way: Way) -> None:
    f, leaf, expected = EAGER_ONLY[case]()
    y0 = ones()
    way.solve(f, y0).mean().backward()
    close(leaf.grad, expected)
    assert not y0.requires_grad


@pytest.mark.parametrize("way", [w for w in EAGER if w.name.split(",")[0] not in NOT_LATER], ids=str)
def test_a_tensor_that_is_used_from_some_time_on(way: Way) -> None:
    """Steps across the switch are not accurate to their tolerance."""
    f, leaf, expected = used_from_some_time_on()
    way.solve(f, ones()).mean().backward()
    assert float(leaf.grad) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("way", WITHOUT_COMPILING, ids=str)
def test_a_result_that_is_a_leaf(way: Way) -> None:
    """FFJORD's field gives zeros with requires_grad for the states that it only carries along."""
    a = number(-0.5)

    def f(t: Tensor, y: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return a * y[0], torch.zeros_like(y[1]).requires_grad_(True)

    y1 = way.solve(f, (ones(), ones()))
    (y1[0].mean() + y1[1].mean()).backward()
    close(a.grad, math.exp(-0.5))
    assert torch.equal(y1[1], ones())


@pytest.mark.filterwarnings("ignore:torch.utils.checkpoint. the use_reentrant:UserWarning")
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")  # where no graph is wanted
@pytest.mark.parametrize("way", [w for w in WITHOUT_COMPILING if "forward" not in w.name], ids=str)
def test_a_reentrant_checkpoint(way: Way) -> None:
    """PyTorch's default: no graph shows what is used inside, and gradients are only accumulated in leaves."""
    a, b = number(0.4), number(0.3)
    a.grad, whole = torch.ones_like(a), []
    a.register_post_accumulate_grad_hook(lambda x: whole.append(x.grad.clone()))
    way.solve(lambda t, y: checkpoint(lambda x: a * x, y) + b * y, ones().requires_grad_()).mean().backward()
    close(a.grad, math.exp(0.7) + 1)
    close(b.grad, math.exp(0.7))
    if "backprop" not in way.name and way.name != "odeint":
        close(whole[0], math.exp(0.7) + 1)
        assert len(whole) == 1


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")
def test_a_reentrant_checkpoint_is_refused_by_name() -> None:
    k = number(0.5)
    a = 2 * k
    with pytest.raises(CaptureError, match="use_reentrant=False"):
        y1 = odenet.solve(lambda t, y: checkpoint(torch.sin, y, use_reentrant=True) * a + k * y, ones(), [0.0, 1.0]).y1
        y1.sum().backward()
    with pytest.raises(CaptureError, match="use_reentrant=False"):
        f = lambda t, y: checkpoint(lambda x: k * x, y, use_reentrant=True)  # noqa: E731
        odenet.solve(f, ones(), [0.0, 1.0], gradient="forward").y1.sum().backward()


settings = ModuleType("settings")


def test_a_parameter_of_a_module_that_is_used_later() -> None:
    """An imported module is looked into as far as f's own names go."""
    settings.rate = number(2.0)  # type: ignore[attr-defined]

    def f(t: Tensor, y: Tensor) -> Tensor:
        return torch.ones_like(y) if t < 0.5 else settings.rate * torch.ones_like(y)

    for gradient in ("backprop", "discrete", odenet.Discrete(checkpoints=3)):
        settings.rate.grad = None
        odenet.solve(f, ones(), [0.0, 0.5, 1.0], gradient=gradient, method="euler", step=0.125).y1.mean().backward()
        close(settings.rate.grad, 0.5)


def test_f_that_leaves_pytorch() -> None:
    """NumPy inside f, where nobody asks for a gradient; also where no step begins with a slope that is known."""
    for method, per_sample in itertools.product(({}, {"method": "rk4", "step": 1e-2}), (False, True)):
        y1 = odenet.solve(
            lambda t, y: torch.from_numpy(-y.numpy()), ones(), [0.0, 1.0], per_sample=per_sample, **TIGHT, **method
        ).y1
        torch.testing.assert_close(y1, ones() * math.exp(-1), rtol=1e-7, atol=0.0)
    with pytest.raises(RuntimeError, match="numpy"):
        odenet.solve(lambda t, y: torch.from_numpy(-y.numpy()), ones().requires_grad_(), [0.0, 1.0])


@pytest.mark.parametrize("way", [w for w in WITHOUT_COMPILING if "per sample" not in w.name], ids=str)
def test_the_dense_solution_of_another_solve(way: Way) -> None:
    """u' = -k u, s' = u - s: s(1) = (exp(-k) - exp(-1)) / (1 - k)."""
    k = number(1.3)
    u = odenet.solve(lambda t, y: -k * y, torch.tensor(1.0, dtype=D), [0.0, 1.0], dense=True, **TIGHT)
    way.solve(lambda t, y: u(t) - y, torch.tensor(0.0, dtype=D)).backward()
    close(k.grad, (-math.exp(-1.3) * (1 - 1.3) + math.exp(-1.3) - math.exp(-1)) / (1 - 1.3) ** 2)


@pytest.mark.parametrize("per_sample", [False, True], ids=["joint", "per sample"])
@pytest.mark.parametrize(
    "options", [{"rtol": 1e-9, "atol": 1e-11}, {"method": "rk4", "step": 0.01}, {"method": "midpoint", "step": 0.001}]
)
def test_a_setting_of_f_that_changes_before_the_backward_pass(options: dict[str, Any], per_sample: bool) -> None:
    """The graphs of the default gradient are those of the solve, that of the very first evaluation among them."""

    class Decay(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.c = nn.Parameter(torch.tensor(0.5, dtype=D)), 0.0

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return -self.w * self.c * y

    f, total = Decay(), torch.zeros((), dtype=D)
    for f.c in (1.0, 2.0):
        total = total + odenet.solve(f, ones(), [0.0, 1.0], per_sample=per_sample, **options).y1.mean()
    f.c = 7.0
    total.backward()
    assert float(f.w.grad) == pytest.approx(-math.exp(-0.5) - 2 * math.exp(-1), rel=1e-6)


_RATE = nn.Linear(1, 1, bias=False).double()


@pytest.mark.parametrize("per_sample", [False, True])
def test_operands_inside_vmap(per_sample: bool) -> None:
    """What only a function inside f names is found by its operands, some of which are vmap's, without memory."""

    def f(t: Tensor, y: Tensor) -> Tensor:
        return torch.func.vmap(lambda y: -_RATE(y))(y)

    end = odenet.solve(f, torch.ones(3, 1, dtype=D), [0.0, 1.0], per_sample=per_sample, rtol=1e-9, atol=1e-9).y1
    rate = _RATE.weight.item()
    (slope,) = torch.autograd.grad(end.mean(), _RATE.weight)
    close(end.mean().detach(), math.exp(-rate))
    close(slope, -math.exp(-rate))
