"""Errors of gradients: of the numerical solution, or of the ODE itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

import odenet

from ..shared.errors import value_or_error
from .gradient_options import GradientOption, continuous_options, exact_options

FIXED: dict[str, dict[str, Any]] = {
    "rk4, step 0.1": {"method": "rk4", "step": 0.1},
    "tsit5, step 0.1": {"method": "tsit5", "step": 0.1},
    "dopri5, step 0.1": {"method": "dopri5", "controller": odenet.ConstantStep(0.1)},
}
TOLERANCES = (1e-4, 1e-6, 1e-8)
_WIDTH = 2e-3  # of the differences, in the units of y0, args and ts: error about _WIDTH**4 / 30, rounding below 1e-12


@dataclass(frozen=True)
class Exactness:
    """Relative errors (2-norm) of the gradients to y0, args and ts; None with a note that says why."""

    label: str
    case: str
    errors: tuple[float, float, float] | None
    target: float | None
    note: str = ""


class Inputs(NamedTuple):
    """Inputs of one solve in float64: y0 (3,), the weight (3, 3) and the rate (3,) of the field, ts (3,)."""

    y0: Tensor
    weight: Tensor
    rate: Tensor
    ts: Tensor


def field(t: Tensor, y: Tensor, weight: Tensor, rate: Tensor) -> Tensor:
    return torch.tanh(weight @ y) * torch.cos(2 * t) - rate * y


def inputs(seed: int) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    y0, weight, rate = (torch.rand(*s, generator=generator, dtype=torch.float64) + 0.5 for s in ((3,), (3, 3), (3,)))
    # no output time lies near a multiple of the step after the one before: differences must not change how many fit
    return Inputs(y0, weight, rate, torch.tensor([0.05, 0.62, 1.27], dtype=torch.float64))


def loss(given: Inputs, gradient: Any, options: dict[str, Any]) -> Tensor:
    """Return a number that depends on all of ys. The solve is the one of a backward pass, also where none follows."""
    y0, weight, rate, ts = (x if x.requires_grad else x.detach().requires_grad_() for x in given)
    sol = odenet.solve(field, y0, ts, args=(weight, rate), gradient=gradient, **options)
    weights = torch.linspace(1, 2, sol.ys.numel(), dtype=torch.float64).view(sol.ys.shape)
    return (weights * sol.ys.sin()).sum()


def gradients(given: Inputs, gradient: Any, options: dict[str, Any]) -> Inputs:
    attached = Inputs(*(x.detach().requires_grad_() for x in given))
    return Inputs(*torch.autograd.grad(loss(attached, gradient, options), attached))


def differences(value: Callable[[Inputs], Tensor], given: Inputs, width: float = _WIDTH) -> Inputs:
    """Return the gradient of `value` by central differences of order 4."""
    columns = []
    for i, x in enumerate(given):
        out = torch.zeros_like(x)
        for j in range(x.numel()):

            def moved(by: float, i: int = i, j: int = j) -> float:
                other = list(given)
                other[i] = other[i].clone()
                other[i].view(-1)[j] += by * width
                return float(value(Inputs(*other)))

            out.view(-1)[j] = (8 * (moved(1) - moved(-1)) - (moved(2) - moved(-2))) / (12 * width)
        columns.append(out)
    return Inputs(*columns)


def errors(mine: Inputs, exact: Inputs) -> tuple[float, float, float]:
    """Return the relative errors of the gradients to y0, args and ts."""

    def relative(*names: str) -> float:
        a, b = (torch.cat([getattr(x, name).flatten() for name in names]) for x in (mine, exact))
        return float((a - b).norm() / b.norm())

    return relative("y0"), relative("weight", "rate"), relative("ts")


def exact_row(option: GradientOption, case: str, given: Inputs) -> Exactness:
    """Return the errors against differences of the same numerical solution."""

    def work() -> tuple[float, float, float]:
        gradient, options = option.make(), FIXED[case]
        reference = differences(lambda x: loss(x, gradient, options).detach(), given)
        return errors(gradients(given, gradient, options), reference)

    found, note = value_or_error(work)
    return Exactness(option.label, case, found, option.target, note)


def continuous_row(option: GradientOption, method: str, tolerance: float, given: Inputs, exact: Inputs) -> Exactness:
    """Return the errors against the gradient of the ODE itself."""
    how = {"method": method, "rtol": tolerance, "atol": tolerance}
    found, note = value_or_error(lambda: errors(gradients(given, option.make(), how), exact))
    target = None if option.target is None else option.target * tolerance
    return Exactness(option.label, f"{method}, tolerance {tolerance:.0e}", found, target, note)


def measure(seed: int, quick: bool) -> list[Exactness]:
    given = inputs(seed)
    exact = gradients(given, "discrete", {"method": "dopri8", "rtol": 1e-12, "atol": 1e-12})
    cases = list(FIXED)[:1] if quick else FIXED
    jobs = [partial(exact_row, o, case, given) for case in cases for o in exact_options()]
    for method in ("tsit5", "dopri5"):
        for tolerance in TOLERANCES[:1] if quick else TOLERANCES:
            jobs += [partial(continuous_row, o, method, tolerance, given, exact) for o in continuous_options()]
    return [job() for job in tqdm(jobs, "exactness", disable=None)]
