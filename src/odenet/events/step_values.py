"""The values of event functions along one step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from ..core.dense import Coefficients, evaluate, slope
from ..core.leaves import Leaves, expand_over, select
from ..core.norms import all_finite
from ..core.scalars import MaskLike, ScalarLike
from ..core.segment_ends import jumps, units
from ..engine.problem import Problem
from ..engine.step_attempt import StepAttempt
from .chebyshev import node_points

_FAR = 1e300  # in place of infinity


class EventValues(ABC):
    """The values of all event functions; each lane has m of them."""

    @abstractmethod
    def __call__(self, t: Tensor, y: Leaves, rows: Tensor | None) -> Tensor:
        """(m,), or (B, m) per sample; of these rows of the batch, where it is `divisible`."""

    @abstractmethod
    def supports_subset(self) -> bool:
        """Whether the functions work on a part of the batch."""


class StepValues:
    """The event functions along one step, at theta in [0, 1]; coefficients: of its dense output."""

    def __init__(self, values: EventValues, p: Problem, attempt: StepAttempt, coefficients: Coefficients) -> None:
        self.values, self.p, self.attempt = values, p, attempt
        self.coefficients = _finite(p, attempt, coefficients)
        self.parts = p.batched and values.supports_subset()

    def inside(self, points: Sequence[float]) -> Tensor:
        """(L, m, n): all values at these n points of the step."""
        lane, rows = self.attempt.time0, self.p.samples.index
        values = [self.values(*self.at(torch.full_like(lane, x)), rows) for x in points]
        return as_lanes(torch.stack(values, -1), self.p.batched)

    def each(self, theta: Tensor, live: Tensor) -> Tensor:
        """(L, m): each value at its own theta, of those that are live."""
        out = torch.zeros_like(theta)
        for k, count in enumerate(live.sum(0).tolist()):
            if not count:
                continue
            if self.parts and 2 * count <= len(theta):
                lanes = live[:, k].nonzero()[:, 0]
                out[lanes, k] = self._values_at(theta[lanes, k], lanes)[:, k]
            else:
                out[:, k] = self._values_at(theta[:, k] if self.p.batched else theta[0, k])[:, k]
        return out

    def at(self, theta: Tensor, lanes: Tensor | None = None) -> tuple[Tensor, Leaves]:
        """Time and state at a theta of each lane, 0-d or (B,), or of these lanes."""
        time0, time1, y, coefficients = self.attempt.time0, self.attempt.time1, self.attempt.y, self.coefficients
        if lanes is not None:
            time0, time1, y = time0[lanes], time1[lanes], _taken(y, lanes)
            coefficients = tuple(_taken(c, lanes) for c in coefficients)
        return time0 + theta * (time1 - time0), evaluate(y, coefficients, expand_over(theta, y))

    def bends(self, theta: Tensor, onwards: Leaves, lanes: Tensor) -> Tensor:
        """Whether f jumps at a theta of each lane, (L,). The `lanes` ask, and are charged for what it takes.

        onwards: what leads from the states there to those just after them.
        """
        p, attempt = self.p, self.attempt
        before, (time, y) = p.f.calls, self.at(theta)
        shift = units(p.f.time_dtype) * torch.maximum(attempt.time0.abs(), attempt.time1.abs()) * p.direction
        found = jumps(p.f, time, y, p.f(time, y), shift, onwards).reshape(-1)
        attempt.claimed, attempt.claim_calls = (lanes if p.batched else True), p.f.calls - before
        return found

    def slope(self, theta: Tensor) -> Leaves:
        """dy/dtheta at a theta of each lane."""
        return slope(self.coefficients, expand_over(theta, self.attempt.y))

    def _values_at(self, theta: Tensor, lanes: Tensor | None = None) -> Tensor:
        samples = self.p.samples
        rows = samples.index if lanes is None else samples.sample_numbers(lanes)
        return as_lanes(self.values(*self.at(theta, lanes), rows), self.p.batched)


def _finite(p: Problem, attempt: StepAttempt, coefficients: Coefficients) -> Coefficients:
    """The dense output of a step; of lanes where it overflows a straight line."""
    fine = all_finite(tuple(c for cs in coefficients for c in cs), p.batched)
    if bool(fine.all()):
        return coefficients
    line = tuple(b - a for a, b in zip(attempt.y, attempt.step.y, strict=True))
    still = tuple(torch.zeros_like(x) for x in line)
    keep = fine if p.batched else bool(fine)
    return (select(keep, coefficients[0], line), *(select(keep, c, still) for c in coefficients[1:]))


def _taken(y: Leaves, lanes: Tensor) -> Leaves:
    return tuple(x.index_select(0, lanes) for x in y)


def rows_at_hand(p: Problem) -> Tensor:
    """The rows of the batch that are at hand."""
    return p.samples.sample_numbers(torch.arange(len(p.direction) if p.batched else 1, device=p.direction.device))


def lanes_of(x: ScalarLike | MaskLike, p: Problem) -> Tensor:
    """A number or flag of each lane as a tensor (L,)."""
    if p.batched:
        return x.detach()
    return torch.tensor([x], dtype=torch.bool if isinstance(x, bool) else p.ts.dtype, device=p.ts.device)


def as_lanes(values: Tensor, batched: bool) -> Tensor:
    """(L, m, ...) in float64. What overflows still has its sign, and is far from zero."""
    return (values if batched else values.unsqueeze(0)).double().nan_to_num(torch.nan, _FAR, -_FAR)


def largest(column: Tensor, until: Tensor) -> Tensor:
    """The largest absolute value at the nodes up to a point of a step, (L, m)."""
    points = node_points().to(until.device)
    return (column.abs() * (points <= until[:, None, None])).amax(-1)
