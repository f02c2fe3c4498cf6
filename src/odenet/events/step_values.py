"""Event values along one step.

Event values are always (L, m): m values for each of L samples, with L = 1 in a joint solve.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from ..core.dense import Coefficients, evaluate, slope
from ..core.leaves import Leaves, expand_over, select
from ..core.norms import all_finite
from ..core.scalars import MaskLike, ScalarLike
from ..core.segment_ends import inward_offset, jumps_across
from ..engine.problem import Problem
from ..engine.step_attempt import StepAttempt
from .chebyshev import node_points, nodes

_FAR = 1e300  # in place of infinity
_EARLY_POINTS = tuple(8.0**-k for k in range(6, 0, -1))  # of the first node: where the sign after an event is looked up


class EventValues(ABC):
    """The m values of all event functions of a solve."""

    @abstractmethod
    def __call__(self, t: Tensor, y: Leaves, rows: Tensor | None) -> Tensor:
        """(m,), or (B, m) per sample. rows: the samples that t and y belong to, where these are not all."""

    @abstractmethod
    def supports_subset(self) -> bool:
        """Whether the functions work on a subset of the batch."""


class StepValues:
    """Event values along one step, at theta in [0, 1]. coefficients: of the step's dense output."""

    def __init__(self, values: EventValues, p: Problem, attempt: StepAttempt, coefficients: Coefficients) -> None:
        self.values, self.p, self.attempt = values, p, attempt
        self.coefficients = _finite_coefficients(p, attempt, coefficients)
        self.use_subsets = p.batched and values.supports_subset()

    def at_points(self, points: Sequence[float]) -> Tensor:
        """(L, m, n): all values at these n points of the step."""
        like, rows = self.attempt.time0, self.p.samples.index
        values = [self.values(*self.at(torch.full_like(like, x)), rows) for x in points]
        return per_sample_values(torch.stack(values, -1), self.p.batched)

    def at_own_points(self, theta: Tensor, needed: Tensor) -> Tensor:
        """(L, m): each value at its own theta, (L, m), where needed, (L, m); elsewhere anything finite."""
        out = torch.zeros_like(theta)
        for k, count in enumerate(needed.sum(0).tolist()):
            if not count:
                continue
            if self.use_subsets and 2 * count <= len(theta):
                rows = needed[:, k].nonzero()[:, 0]
                out[rows, k] = self._values_at(theta[rows, k], rows)[:, k]
            else:
                out[:, k] = self._values_at(theta[:, k] if self.p.batched else theta[0, k])[:, k]
        return out

    def at(self, theta: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Leaves]:
        """Time and state at a theta for each sample, () or (B,), or for each of these rows."""
        time0, time1, y, coefficients = self.attempt.time0, self.attempt.time1, self.attempt.y, self.coefficients
        if rows is not None:
            time0, time1, y = time0[rows], time1[rows], _take_rows(y, rows)
            coefficients = tuple(_take_rows(c, rows) for c in coefficients)
        return time0 + theta * (time1 - time0), evaluate(y, coefficients, expand_over(theta, y))

    def f_jumps(self, theta: Tensor, displacement: Leaves, samples: Tensor) -> Tensor:
        """(L,): whether f jumps at a theta for each sample. These samples, (L,), are charged for its evaluations.

        displacement: leaves, from the states there to states just after them.
        """
        p, attempt = self.p, self.attempt
        before, (time, y) = p.f.calls, self.at(theta)
        shift = inward_offset(p.f.time_dtype) * torch.maximum(attempt.time0.abs(), attempt.time1.abs()) * p.direction
        found = jumps_across(p.f, time, y, p.f(time, y), shift, displacement).reshape(-1)
        attempt.claimed, attempt.claim_calls = (samples if p.batched else True), p.f.calls - before
        return found

    def slope(self, theta: Tensor) -> Leaves:
        """dy/dtheta at a theta for each sample."""
        return slope(self.coefficients, expand_over(theta, self.attempt.y))

    def _values_at(self, theta: Tensor, rows: Tensor | None = None) -> Tensor:
        samples = self.p.samples
        numbers = samples.index if rows is None else samples.sample_numbers(rows)
        return per_sample_values(self.values(*self.at(theta, rows), numbers), self.p.batched)


def _finite_coefficients(p: Problem, attempt: StepAttempt, coefficients: Coefficients) -> Coefficients:
    """The dense output of a step, replaced by a straight line in samples where it overflows."""
    finite = all_finite(tuple(c for cs in coefficients for c in cs), p.batched)
    if bool(finite.all()):
        return coefficients
    line = tuple(b - a for a, b in zip(attempt.y, attempt.step.y, strict=True))
    zeros = tuple(torch.zeros_like(x) for x in line)
    keep = finite if p.batched else bool(finite)
    return (select(keep, coefficients[0], line), *(select(keep, c, zeros) for c in coefficients[1:]))


def _take_rows(y: Leaves, rows: Tensor) -> Leaves:
    return tuple(x.index_select(0, rows) for x in y)


def current_samples(p: Problem) -> Tensor:
    """(L,): numbers of the samples in the current batch; 0 in a joint solve."""
    rows = torch.arange(len(p.direction) if p.batched else 1, device=p.direction.device)
    return p.samples.sample_numbers(rows)


def per_sample(x: ScalarLike | MaskLike, p: Problem) -> Tensor:
    """(L,): a number or truth value of the loop as a tensor."""
    if isinstance(x, Tensor):
        return x.detach()
    return torch.tensor([x], dtype=torch.bool if isinstance(x, bool) else p.ts.dtype, device=p.ts.device)


def per_sample_values(values: Tensor, batched: bool) -> Tensor:
    """(L, m, ...) in float64. A value that overflows becomes large, with its sign."""
    return (values if batched else values.unsqueeze(0)).double().nan_to_num(torch.nan, _FAR, -_FAR)


def largest(node_values: Tensor, until: Tensor) -> Tensor:
    """(L, m): the largest absolute value at the nodes up to the point `until`, (L,), of a step."""
    points = node_points().to(until.device)
    return (node_values.abs() * (points <= until[:, None, None])).amax(-1)


def raise_for_nonfinite(bad: Tensor, values: Tensor, attempt: StepAttempt) -> None:
    """Raise for the first `bad` one of the values, (L, m) or (L, m, n), along a step."""
    if not bool(bad.any()):
        return
    row, value, *_ = index = bad.nonzero()[0].tolist()
    t0 = float(torch.as_tensor(attempt.t0).reshape(-1)[row])
    sample = f", sample {int(attempt.problem.samples.sample_numbers(row))}" if attempt.problem.batched else ""
    raise ValueError(
        f"value {value} of the event functions is {float(values[tuple(index)])} in the step from t={t0:.6g}{sample}: "
        "an event function must be defined along the solution, up to a step past the event (clamp the argument of a "
        "log or root)"
    )


def first_signs(
    path: StepValues, values: Tensor, signs: Tensor, noise_floor: Tensor, active: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The signs before the step, from where on they hold, and from where on values are more than noise; all (L, m).

    After an event, a value that is zero has the first sign that it takes, which may be long before the first node.
    values: at the nodes, (L, m, n).
    """
    left, unknown = torch.zeros_like(signs), active & (signs == 0)
    points = node_points().to(values.device)
    loud = values.abs() > noise_floor.unsqueeze(-1)
    index = loud.to(torch.uint8).argmax(-1, keepdim=True)
    loud_from = torch.where(loud.any(-1), points[index.squeeze(-1)], torch.inf)
    loud_from = torch.where(unknown | (noise_floor > 0), loud_from, 0.0)
    early = unknown & (noise_floor > 0)
    if bool(early.any()):
        for fraction in _EARLY_POINTS:
            theta = torch.full_like(left, fraction * nodes()[1])
            value = path.at_own_points(theta, early)
            known = early & (value.abs() > noise_floor) & torch.isfinite(value)
            signs, left = torch.where(known, value.sign(), signs), torch.where(known, theta, left)
            loud_from, early = torch.where(known, theta, loud_from), early & ~known
            if not bool(early.any()):
                break
    first = values.gather(-1, index).squeeze(-1).sign()
    return torch.where(unknown & (signs == 0) & loud.any(-1), first, signs), left, loud_from
