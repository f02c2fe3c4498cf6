"""Stop times: the times that end a step. engine/stop_tracker.py follows them during a solve."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..core.torch_func import all_true

if TYPE_CHECKING:
    from .controller import Controller

Times = Sequence[float] | Tensor | Callable[[Tensor], Any]
"""Times, or a callable from the output times ts of a solve to times. Its result is checked: it is the caller's code."""


def check_times(name: str, times: Times | None) -> None:
    """Raise unless `times` are None, a callable, or finite times of shape (n,) or (B, n)."""
    if times is None or callable(times):
        return
    try:
        values = torch.as_tensor(times)
    except (TypeError, ValueError, RuntimeError, OverflowError, IndexError):
        raise TypeError(f"{name} must be a sequence or tensor of times; got {times!r}") from None
    if values.ndim not in (1, 2):
        raise ValueError(f"{name} must be a sequence of times, (n,) or (B, n); got {times!r}: write {name}=[...]")
    if values.is_meta or values.layout is not torch.strided:
        raise TypeError(f"{name} must be a dense tensor that holds its values; got {times!r}")
    if values.is_complex() or not all_true(torch.isfinite(values.to(torch.float64))):
        raise ValueError(f"{name} must be real and finite; got {times!r}")


@dataclass(frozen=True)
class StopTimes:
    """The stop times of one solve, in its direction of time; the last one is the end of the solve.

    A jump of f at the start of the solve is among them, and ends no step.

    times: (S,), or (B, S) per sample; differentiable with respect to ts, step_ts and jump_ts. jumps: booleans of that
    shape, True where f is evaluated again after the stop, or None where f never jumps. rule: the `StopRule` that gave
    them.
    """

    times: Tensor
    jumps: Tensor | None
    rule: StopRule

    def jump_at(self, t: Tensor) -> Tensor | bool:
        """Whether f jumps at t, () or (B,) per sample."""
        return False if self.jumps is None else (self.jumps & (self.times.detach() == t.unsqueeze(-1))).any(-1)

    @cached_property
    def on_host(self) -> tuple[float, ...]:
        """The times of a joint solve as floats."""
        return tuple(self.times.detach().tolist())

    @cached_property
    def last_coincident(self) -> tuple[int, ...]:
        """For each stop of a joint solve, the index of the last stop at the same time."""
        times, last = self.on_host, list(range(len(self.on_host)))
        for i in range(len(times) - 2, -1, -1):
            if times[i] == times[i + 1]:
                last[i] = last[i + 1]
        return tuple(last)


class StopRule(NamedTuple):
    """The rule that gives the stop times of a solve; independent of the size of the steps between them.

    every_output: each time in ts ends a step, not only the last. step_ts: further stop times. jump_ts: the same, at
    jumps of f or of a derivative of f: f is evaluated just before the time for the step that ends there, and again just
    after it. perturb: f is evaluated just after the start and just before the end of each step, as if it jumped at
    both. stretch: factor by which a step may grow to end at the next stop time, against a sliver of a step before it.
    """

    every_output: bool = False
    step_ts: Times | None = None
    jump_ts: Times | None = None
    perturb: bool = False
    stretch: float = 1.01

    @staticmethod
    def from_controller(controller: Controller) -> StopRule:
        c = controller
        return StopRule(c.every_output, c.step_ts, c.jump_ts, c.perturb, c.stretch)

    @property
    def ts_only(self) -> bool:
        """True where all stop times are in ts."""
        return self.step_ts is None and self.jump_ts is None

    def resolve(self, ts: Tensor) -> StopRule:
        """The same rule with callables replaced by the times that they give for ts."""
        if self.ts_only:
            return self
        return self._replace(
            step_ts=_resolve_times("step_ts", self.step_ts, ts), jump_ts=_resolve_times("jump_ts", self.jump_ts, ts)
        )

    def stop_times(self, ts: Tensor, direction: Tensor) -> StopTimes:
        """The stop times of a solve with outputs at ts, (T,) or (B, T). direction: 1.0 or -1.0, () or (B,)."""
        outputs = ts[..., 1:] if self.every_output else ts[..., -1:]
        if self.ts_only:
            return StopTimes(outputs, None, self)
        times, jumps = [outputs], [torch.zeros_like(outputs, dtype=torch.bool)]
        sign = direction.unsqueeze(-1) if ts.ndim == 2 else direction
        rule = self.resolve(ts)
        for given, jump in ((rule.step_ts, False), (rule.jump_ts, True)):
            if given is None:
                continue
            extra = torch.as_tensor(given, dtype=ts.dtype, device=ts.device)
            extra = extra.expand(ts.shape[:-1] + extra.shape[-1:])
            after, before = (extra - ts[..., :1]) * sign, (ts[..., -1:] - extra) * sign
            # with start and end: the step at a jump there sees f behind or before it
            inside = (after >= 0 if jump else after > 0) & (before >= 0)
            times.append(torch.where(inside, extra, ts[..., -1:]))
            jumps.append(inside if jump else torch.zeros_like(inside))
        all_times, all_jumps = torch.cat(times, -1), torch.cat(jumps, -1)
        order = torch.argsort(all_times.detach() * sign, dim=-1, stable=True)
        all_times, all_jumps = all_times.gather(-1, order), all_jumps.gather(-1, order)
        if self.jump_ts is None:
            return StopTimes(all_times, None, self)
        # a step ends once at coincident stop times: each of them is a jump where one of them is
        time = all_times.detach()
        group = torch.nn.functional.pad(time[..., 1:] != time[..., :-1], (1, 0)).cumsum(-1)
        jumps_at = torch.zeros_like(group).scatter_add(-1, group, all_jumps.to(group.dtype))
        return StopTimes(all_times, jumps_at.gather(-1, group) > 0, self)


def _resolve_times(name: str, times: Times | None, ts: Tensor) -> Sequence[float] | Tensor | None:
    """The times themselves, or those that a callable gives for ts. Raises TypeError where it returns None."""
    if not callable(times):
        return times
    resolved = times(ts)
    check_times(f"the result of {name}(ts)", resolved)
    if resolved is None:
        raise TypeError(f"{name} must give times where it is callable; got None")
    return torch.as_tensor(resolved, dtype=ts.dtype, device=ts.device)
