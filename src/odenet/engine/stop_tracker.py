"""Clock: the times that end a step, and the ends of steps as tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..core.leaves import differentiable
from ..core.scalars import MaskLike, ScalarLike
from ..methods.method import Tolerances
from .planned_steps import StepPlanner
from .problem import Problem


class StopTracker:
    """The times to hit, on the host where lanes are there, else in tensors."""

    def __init__(self, p: Problem) -> None:
        self.p = p
        self.times = p.stops.times.detach()
        self.tracked = differentiable(p.stops.times)
        self.host: Any = list(p.stops.on_host) if p.on_host else None
        self.jumps_there: Any = p.stops.jumps if p.stops.jumps is None or not p.on_host else p.stops.jumps.tolist()
        self.sign: ScalarLike = float(p.direction) if p.on_host else p.direction
        self.count = self.times.shape[-1]
        self.last = self._last_of_equal()
        self.smooth = not p.stops.rule.perturb and p.stops.jumps is None  # f is evaluated at the times themselves
        self.always = p.controller.constant_decision() if p.on_host else None
        self.planner = (
            StepPlanner(p, self.host, self.last, self.sign)
            if self.host is not None and StepPlanner.possible(p)
            else None
        )
        control = p.controller
        self.tolerances = Tolerances(p.rtol, p.atol, control.norm) if control.adaptive else None
        self.leaf_times = False  # the end of a step is a leaf that asks for its gradient
        self.event_stops: MaskLike = None  # lanes of which the next time to hit is that of an event

    def end_at(self, lanes: MaskLike, stop: ScalarLike, t: ScalarLike) -> None:
        """Of these lanes: end the step at hand at t, the time of an event, in place of the next time to hit.

        f jumps there only where that is the next time to hit, and f jumps at it.
        """
        self._replace(lanes, stop, t)

    def cancel_end_at(self, lanes: MaskLike, stop: ScalarLike) -> None:
        """Of these lanes: there is no event, and the next time to hit is what it was."""
        self._replace(lanes, stop, None)

    def _replace(self, lanes: MaskLike, stop: ScalarLike, t: ScalarLike | None) -> None:
        stops, jumps = self.p.stops.times.detach(), self.p.stops.jumps
        if self.host is not None:
            own = float(stops[stop])
            t, self.event_stops = (own, None) if t is None else (t, True)
            if jumps is not None:
                self.jumps_there[stop] = bool(jumps[stop]) and own == t
            self.host[stop] = t
            return
        if self.event_stops is None:  # the times are the problem's own until then
            self.event_stops, self.times = torch.zeros_like(lanes), self.times.clone()
            self.jumps_there = None if self.jumps_there is None else self.jumps_there.clone()
        rows = lanes.nonzero()[:, 0]
        place = rows, stop[rows]
        fresh = stops[place] if t is None else t[rows]
        if jumps is not None:
            self.jumps_there[place] = jumps[place] & (stops[place] == fresh)
        self.event_stops[rows], self.times[place] = t is not None, fresh

    def _last_of_equal(self) -> ScalarLike:
        """For each stop the last one at the same time: what ends there moves with the last."""
        if self.p.traced:  # ONNX knows no cumulative minimum
            same = self.times.unsqueeze(-1) == self.times.unsqueeze(-2)
            return self.count - 1 - same.flip(-1).to(torch.uint8).argmax(-1)
        if self.host is None:
            index = torch.arange(self.count, device=self.times.device)
            after = torch.nn.functional.pad(self.times[..., 1:] != self.times[..., :-1], (0, 1), value=True)
            return torch.where(after, index, self.count).flip(-1).cummin(-1).values.flip(-1)
        return self.p.stops.last_coincident

    def target(self, stop: ScalarLike) -> ScalarLike:
        if self.host is not None:
            return self.host[stop]
        return self._at(self.times, stop)

    def jumps(self, stop: ScalarLike, hit: MaskLike) -> MaskLike:
        if self.jumps_there is None:
            return False
        if self.host is not None:
            return hit and self.jumps_there[stop]
        return hit & self._at(self.jumps_there, stop)

    def time(self, stop: ScalarLike, hit: MaskLike, t1: ScalarLike, time0: Tensor, t0: ScalarLike) -> Tensor:
        """t1 as a tensor: a stop itself where it was hit, else a constant after time0."""
        if not self.tracked or (hit is True and self.event_stops):
            time1 = t1 if isinstance(t1, Tensor) else time0.new_tensor(t1)
            return time1.detach().requires_grad_() if self.leaf_times else time1
        time1 = attached(self.p.stops.times, stop, hit, t1, time0)
        if isinstance(self.event_stops, Tensor):
            time1 = torch.where(self.event_stops & hit, t1, time1)
        return time1

    def stop_hit(self, stop: ScalarLike, hit: MaskLike) -> ScalarLike:
        """`stop`, or -1 where it is the time of an event that a step hits."""
        if isinstance(self.event_stops, Tensor):
            return torch.where(self.event_stops & hit, -1, stop)
        return -1 if self.event_stops and hit else stop

    def next_stop(self, t: ScalarLike, stop: ScalarLike) -> ScalarLike:
        """Index of the first stop after t, the last one of several at that time."""
        if self.host is not None:
            while stop < self.count and (self.host[stop] - t) * self.sign <= 0:
                stop = self.last[stop] + 1
            return self.last[stop] if stop < self.count else stop
        first = ((self.times - t.unsqueeze(-1)) * self.sign.unsqueeze(-1) <= 0).sum(-1)
        return torch.where(first < self.count, self._at(self.last, first), first)

    def passed(self, t: Tensor, stop: Tensor) -> Tensor:
        """`next_stop` for lanes that go to their stop and no further, at a cost that does not grow with the stops."""
        after = stop + 1
        after = torch.where(after < self.count, self._at(self.last, after), self.count)
        there = (self._at(self.times, stop) - t) * self.sign <= 0
        return torch.where(there & (stop < self.count), after, stop)

    def _at(self, values: Tensor, stop: Tensor) -> Tensor:
        """For each lane the value of its stop (of the last one where it has passed them all)."""
        if self.count == 1:
            return values[..., 0]
        return values.gather(-1, stop.clamp(max=self.count - 1).unsqueeze(-1)).squeeze(-1)


def attached(stops: Tensor, stop: ScalarLike, hit: MaskLike, t1: ScalarLike, time0: Tensor) -> Tensor:
    """The end of a step with its dependence on ts: on the stop where it was hit, on the start of the step elsewhere."""
    if not isinstance(hit, Tensor):
        return stops[stop] if hit else time0 + (t1 - time0.detach())
    at_stop = stops.gather(-1, stop.clamp(max=stops.shape[-1] - 1).unsqueeze(-1)).squeeze(-1)
    return torch.where(hit, at_stop, time0 + (t1 - time0.detach()))
