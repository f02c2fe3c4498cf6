"""StopTracker: the next stop time of each sequence of steps, and the ends of steps as tensors attached to it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, final

import torch
from torch import Tensor
from typing_extensions import TypeVar

from ..control.controller import Decision
from ..core.leaves import differentiable
from ..core.scalars import MaskLike
from ..methods.method import Tolerances
from .planned_steps import StepPlanner
from .problem import Problem

# Without parameters: either of the two kinds, whose methods fit only states of their kind.
Scalar = TypeVar("Scalar", default=Any)
Index = TypeVar("Index", default=Any)
Mask = TypeVar("Mask", default=Any)


class StopTracker(ABC, Generic[Scalar, Index, Mask]):
    """What the loop asks about the stop times of `p`; S of them.

    sign: +1 where time increases, else -1. count: S. two_sided: no step needs a one-sided limit of f at its ends.
    tolerances: for the method, where an error chooses the steps. leaf_times: the end of a step is to be a leaf of the
    step's graph.
    """

    sign: Scalar

    def __init__(self, p: Problem) -> None:
        self.p = p
        self.count = p.stops.times.shape[-1]
        self.times_differentiable = differentiable(p.stops.times)
        self.two_sided = not p.stops.rule.perturb and p.stops.jumps is None
        control = p.controller
        self.tolerances = Tolerances(p.rtol, p.atol, control.norm) if control.adaptive else None
        self.leaf_times = False

    @abstractmethod
    def target(self, stop: Index) -> Scalar:
        """The stop time with this index."""

    @abstractmethod
    def next_stop(self, t: Scalar, stop: Index) -> Index:
        """Index of the first stop time after t, not before `stop`; of several at the same time the last one."""

    @abstractmethod
    def end_time(self, stop: Index, hit: Mask, t1: Scalar, time0: Tensor) -> Tensor:
        """t1 as a tensor: attached to the stop time that was hit, else at a constant distance from time0."""

    @abstractmethod
    def set_event_stop(self, samples: Mask, stop: Index, t: Scalar) -> None:
        """The next step of these samples ends at t, the time of an event, instead of its stop time.

        f jumps there only where t is a stop time at which f jumps.
        """

    @abstractmethod
    def clear_event_stop(self, samples: Mask, stop: Index) -> None:
        """Undo `set_event_stop`: there is no event."""


def stop_tracker(p: Problem) -> HostStopTracker | BatchStopTracker:
    return HostStopTracker(p) if p.on_host else BatchStopTracker(p)


@final
class HostStopTracker(StopTracker[float, int, bool]):
    """For a joint solve with Python numbers.

    times, jumps: the stop times and whether f jumps there, as lists. event_stop: the next stop is the time of an event.
    unconditional: the decision on every step whose end is finite, if the controller has but one. planner: computes the
    times of many steps at once, where these are known beforehand.
    """

    def __init__(self, p: Problem) -> None:
        super().__init__(p)
        self.times = list(p.stops.on_host)
        self.jumps: list[bool] | None = None if p.stops.jumps is None else p.stops.jumps.tolist()
        self.sign = float(p.direction)
        self.last_coincident: Sequence[int] = p.stops.last_coincident
        self.event_stop = False
        self.unconditional: Decision | None = p.controller.constant_decision()
        self.planner = StepPlanner(p, self.times, self.last_coincident, self.sign) if StepPlanner.applies(p) else None

    def target(self, stop: int) -> float:
        return self.times[stop]

    def next_stop(self, t: float, stop: int) -> int:
        while stop < self.count and (self.times[stop] - t) * self.sign <= 0:
            stop = self.last_coincident[stop] + 1
        return self.last_coincident[stop] if stop < self.count else stop

    def end_time(self, stop: int, hit: bool, t1: float, time0: Tensor) -> Tensor:
        if not self.times_differentiable or (hit and self.event_stop):
            time1 = time0.new_tensor(t1)
            return time1.requires_grad_() if self.leaf_times else time1
        return self.p.stops.times[stop] if hit else time0 + (t1 - time0.detach())

    def set_event_stop(self, samples: bool, stop: int, t: float) -> None:
        self._replace(stop, t)
        self.event_stop = True

    def clear_event_stop(self, samples: bool, stop: int) -> None:
        self._replace(stop, float(self.p.stops.times.detach()[stop]))
        self.event_stop = False

    def _replace(self, stop: int, t: float) -> None:
        stops = self.p.stops
        if self.jumps is not None and stops.jumps is not None:
            self.jumps[stop] = bool(stops.jumps[stop]) and float(stops.times.detach()[stop]) == t
        self.times[stop] = t


@final
class BatchStopTracker(StopTracker[Tensor, Tensor, Tensor]):
    """For numbers in tensors: (B,) per sample, () for a joint solve that is traced.

    times, jumps: the stop times and whether f jumps there, (S,) or (B, S). event_stops: samples whose next stop is the
    time of an event; None before the first event.
    """

    def __init__(self, p: Problem) -> None:
        super().__init__(p)
        self.times = p.stops.times.detach()
        self.jumps = p.stops.jumps
        self.sign = p.direction
        self.last_coincident = self._last_of_equal()
        self.event_stops: Tensor | None = None

    def _last_of_equal(self) -> Tensor:
        """(S,) or (B, S): for each stop time the index of the last one that equals it."""
        if self.p.traced:  # ONNX has no cumulative minimum
            same = self.times.unsqueeze(-1) == self.times.unsqueeze(-2)
            return self.count - 1 - same.flip(-1).to(torch.uint8).argmax(-1)
        index = torch.arange(self.count, device=self.times.device)
        differs = torch.nn.functional.pad(self.times[..., 1:] != self.times[..., :-1], (0, 1), value=True)
        return torch.where(differs, index, self.count).flip(-1).cummin(-1).values.flip(-1)

    def target(self, stop: Tensor) -> Tensor:
        return self._at(self.times, stop)

    def jumps_at(self, stop: Tensor, hit: Tensor) -> MaskLike:
        """Samples that hit a stop time at which f jumps."""
        return False if self.jumps is None else hit & self._at(self.jumps, stop)

    def next_stop(self, t: Tensor, stop: Tensor) -> Tensor:
        first = ((self.times - t.unsqueeze(-1)) * self.sign.unsqueeze(-1) <= 0).sum(-1)
        return torch.where(first < self.count, self._at(self.last_coincident, first), first)

    def following_stop(self, t: Tensor, stop: Tensor) -> Tensor:
        """`next_stop` for samples that went no further than their stop time; its cost does not grow with S."""
        after = stop + 1
        after = torch.where(after < self.count, self._at(self.last_coincident, after), self.count)
        reached = (self._at(self.times, stop) - t) * self.sign <= 0
        return torch.where(reached & (stop < self.count), after, stop)

    def end_time(self, stop: Tensor, hit: Tensor, t1: Tensor, time0: Tensor) -> Tensor:
        if not self.times_differentiable:
            return t1.detach().requires_grad_() if self.leaf_times else t1
        stops = self.p.stops.times
        at_stop = stops.gather(-1, stop.clamp(max=stops.shape[-1] - 1).unsqueeze(-1)).squeeze(-1)
        time1 = torch.where(hit, at_stop, time0 + (t1 - time0.detach()))
        return time1 if self.event_stops is None else torch.where(self.event_stops & hit, t1, time1)

    def set_event_stop(self, samples: Tensor, stop: Tensor, t: Tensor) -> None:
        rows = samples.nonzero()[:, 0]
        self._replace(samples, rows, stop, t[rows], True)

    def clear_event_stop(self, samples: Tensor, stop: Tensor) -> None:
        rows = samples.nonzero()[:, 0]
        self._replace(samples, rows, stop, self.p.stops.times.detach()[rows, stop[rows]], False)

    def _replace(self, samples: Tensor, rows: Tensor, stop: Tensor, t: Tensor, event: bool) -> None:
        times, jumps = self.p.stops.times.detach(), self.p.stops.jumps
        if self.event_stops is None:  # the tensors are those of the problem until now
            self.event_stops, self.times = torch.zeros_like(samples), self.times.clone()
            self.jumps = None if self.jumps is None else self.jumps.clone()
        index = rows, stop[rows]
        if self.jumps is not None and jumps is not None:
            self.jumps[index] = jumps[index] & (times[index] == t)
        self.event_stops[rows], self.times[index] = event, t

    def _at(self, values: Tensor, stop: Tensor) -> Tensor:
        """The value at the stop of each sample; at its last one where it has passed them all."""
        if self.count == 1:
            return values[..., 0]
        return values.gather(-1, stop.clamp(max=self.count - 1).unsqueeze(-1)).squeeze(-1)
