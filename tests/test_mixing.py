"""per_sample: a field that mixes samples, or takes t along a wrong axis, is refused when it is first seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import odenet
from gradient_settings import NAMES
from slow_cases import slow_unless

D = torch.float64
SQUARE = torch.linspace(0.1, 1.0, 9, dtype=D).view(3, 3)


def normed(y: Tensor) -> Tensor:
    return nn.BatchNorm1d(3, dtype=D)(y)


MIXING: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "a mean over the batch": lambda t, y: y - y.mean(0),
    "a sum over everything": lambda t, y: -y * y.sum(),
    "a softmax over the batch": lambda t, y: torch.softmax(y, 0),
    "a product with the batch": lambda t, y: (y @ y.T) @ y,
    "attention between samples": lambda t, y: torch.softmax(y @ y.T, -1) @ y,
    "neighbours": lambda t, y: y.roll(1, 0) - y,
    "a cumulative sum": lambda t, y: y.cumsum(0),
    "a graph": lambda t, y: torch.tensor([[0.0, 1, 0], [1, 0, 1], [0, 1, 0]], dtype=D) @ y,
}
MISFIT: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "a product": lambda t, y: -y * t,
    "a sum": lambda t, y: torch.sin(y) + t,
    "a derivative that is zero at first": lambda t, y: y * torch.cos(3 * t),
    "a square": lambda t, y: y * t**2,
}


@pytest.mark.parametrize("gradient", ["discrete", "backprop", "adjoint", "gauss", "reversible"])
@pytest.mark.parametrize("field", MIXING)
def test_mixed_samples(field: str, gradient: str) -> None:
    y0 = SQUARE.clone().requires_grad_()
    with pytest.raises(ValueError, match=r"f mixes the samples: row \d of f\(t, y\) depends on y\[\d\]"):
        odenet.solve(MIXING[field], y0, [0.0, 1.0], per_sample=True, gradient=gradient)


@pytest.mark.parametrize(
    "options", [{}, {"gradient": "backprop"}, {"method": "rk4", "step": 0.1}, {"gradient": "adjoint"}], ids=str
)
@pytest.mark.parametrize("asks", [False, True])
@pytest.mark.parametrize("field", MISFIT)
def test_time_along_the_wrong_axis(field: str, asks: bool, options: Any) -> None:
    with pytest.raises(ValueError, match=r"depends on t\[\d\].*t\.view\(-1, 1\)"):
        odenet.solve(MISFIT[field], SQUARE.clone().requires_grad_(asks), [0.0, 1.0], per_sample=True, **options)


FEW: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "the first time for all": lambda t, y: -y * t[0],
    "the last time for all": lambda t, y: -y * t[-1],
    "the mean of the times": lambda t, y: -y * t.mean(),
    "a pair": lambda t, y: torch.cat([y[:2].flip(0), y[2:]]) - 2 * y,
    "differences from the first": lambda t, y: y - y[:1],
    "differences from the last": lambda t, y: y - y[-1:],
    "sums so far": lambda t, y: -y.cumsum(0),
    "the rows the other way round": lambda t, y: y.flip(0) - y,
    "the same, of values alone": lambda t, y: y.flip(0).detach() - y,
    "the second row before": lambda t, y: y - torch.cat([y[:1], y[1:2] + y[:1], y[:-2]])[: len(y)],
}


@pytest.mark.parametrize("options", [{}, {"method": "midpoint", "step": 0.1}, {"gradient": "backprop"}], ids=str)
@pytest.mark.parametrize("count", [2, 3, 4, 8, 33])
@pytest.mark.parametrize("field", FEW)
def test_few_rows_that_others_depend_on(field: str, count: int, options: Any) -> None:
    for seed in range(3):
        y0 = torch.randn(count, 1, generator=torch.Generator().manual_seed(seed), dtype=D)
        with pytest.raises(ValueError, match=r"row \d+ of f\(t, y\) depends on [ty]\[\d+\]"):
            odenet.solve(FEW[field], y0, [0.0, 1.0], per_sample=True, **options)


@pytest.mark.parametrize("count", [2, 3, 5, 9, 40])
def test_one_row_that_depends_on_another(count: int) -> None:
    """Whichever they are."""
    draw = torch.Generator().manual_seed(count)
    for _ in range(12):
        row, other = torch.randperm(count, generator=draw)[:2].tolist()
        link = torch.eye(count, dtype=D)
        link[row, other] = 1e-3
        y0 = torch.randn(count, 2, generator=draw, dtype=D)
        if (row + row // 16) % 16 == (other + other // 16) % 16:
            continue  # of the same weight: not seen
        with pytest.raises(ValueError, match=rf"row {row} of f\(t, y\) depends on y\[{other}\]"):
            odenet.solve(lambda t, y, link=link: torch.sin(link @ y), y0, [0.0, 1.0], per_sample=True)


@pytest.mark.parametrize("gradient", NAMES)
def test_what_y0_was_made_of_is_no_mixing(gradient: str) -> None:
    """A summary of the batch that f closes over is a constant of the solve."""
    seeds = SQUARE.clone().requires_grad_()
    for y0 in (seeds, 2 * seeds):
        mean = y0.mean(0)
        y1 = odenet.solve(
            lambda t, y, mean=mean: mean * y, y0, [0.0, 1.0], per_sample=True, gradient=gradient, rtol=1e-9, atol=1e-11
        ).y1
        exact = y0 * torch.exp(mean)
        torch.testing.assert_close(y1, exact, rtol=1e-6, atol=1e-8)
        (found,), (right,) = (torch.autograd.grad(x.sum(), seeds, retain_graph=True) for x in (y1, exact))
        torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-6)


def test_an_f_that_changes_by_itself_is_no_mixing() -> None:
    """A power iteration goes on in every evaluation."""
    norm = nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3, dtype=D))
    assert bool(torch.isfinite(odenet.solve(lambda t, y: norm(y), SQUARE, [0.0, 1.0], per_sample=True).y1).all())


@pytest.mark.filterwarnings("ignore:compile=True:UserWarning")
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("compile", slow_unless([False, True], False))
def test_without_grad_mode_too(grad: bool, compile: bool) -> None:
    with torch.set_grad_enabled(grad), pytest.raises(ValueError, match="mixes the samples"):
        odenet.solve(MIXING["neighbours"], SQUARE, [0.0, 1.0], per_sample=True, compile=compile)


def test_time_along_the_right_axis() -> None:
    sol = odenet.solve(lambda t, y: -y * t.view(-1, 1), SQUARE, [0.0, 1.0], per_sample=True, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(sol.y1, SQUARE * torch.exp(torch.tensor(-0.5, dtype=D)), rtol=1e-7, atol=0.0)


def test_batch_norm_is_named() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3, dtype=D)

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return self.norm(y)

    f = Normed()
    with pytest.raises(ValueError, match="BatchNorm in training"):
        odenet.solve(f, SQUARE, [0.0, 1.0], per_sample=True)
    assert bool(torch.isfinite(odenet.solve(f.eval(), SQUARE, [0.0, 1.0], per_sample=True).y1).all())
    assert bool(torch.isfinite(odenet.solve(f.train(), SQUARE, [0.0, 1.0]).y1).all())


@pytest.mark.parametrize(
    "f",
    [
        lambda t, y: torch.tanh(y @ torch.ones(3, 3, dtype=D)),
        lambda t, y: y - y.mean(1, keepdim=True),
        lambda t, y: y.flip(1),
        lambda t, y: torch.softmax(y, 1),
        lambda t, y: torch.stack([torch.sin(x) for x in y]),
    ],
)
def test_fields_that_mix_nothing(f: Any) -> None:
    alone = [odenet.solve(f, row[None], [0.0, 1.0], rtol=1e-9, atol=1e-11).y1 for row in SQUARE]
    both = odenet.solve(f, SQUARE, [0.0, 1.0], rtol=1e-9, atol=1e-11, per_sample=True).y1
    torch.testing.assert_close(both, torch.cat(alone), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("count", [3, 4, 7, 33])
def test_a_row_that_all_depend_on(count: int) -> None:
    """The largest, wherever it lies."""
    for seed in range(4):
        y0 = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed), dtype=D)
        with pytest.raises(ValueError, match="mixes the samples"):
            odenet.solve(lambda t, y: -y / y.abs().max(), y0, [0.0, 1.0], per_sample=True)
