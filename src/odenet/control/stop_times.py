"""Times that end a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

Times = Sequence[float] | Tensor | Callable[[Tensor], Tensor]
"""Times given beforehand, or made of the output times ts of the solve at hand."""


def check_times(name: str, given: Times | None) -> None:
    """Raise for a `given` that is not finite times, (n,) or one row a sample (B, n)."""
    if given is None or callable(given):
        return
    try:
        times = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError, OverflowError, IndexError):
        raise TypeError(f"{name} must be a sequence or tensor of times; got {given!r}") from None
    if times.ndim not in (1, 2):
        raise ValueError(f"{name} must be a sequence of times, (n,) or (B, n); got {given!r}: write {name}=[...]")
    if times.is_meta or times.layout is not torch.strided:
        raise TypeError(f"{name} must be a dense tensor that holds its values; got {given!r}")
    if times.is_complex() or not bool(torch.isfinite(times.to(torch.float64)).all()):
        raise ValueError(f"{name} must be real and finite; got {given!r}")


@dataclass(frozen=True)
class StopTimes:
    """Times that end a step of a solve at hand, in its order; the last is the end of the solve.

    times: (S,), or (B, S) per sample, attached to the caller's ts, step_ts and jump_ts. jumps: booleans of that shape,
    True where f is to be evaluated anew, or None where there are none. rule: what they were made by.
    """

    times: Tensor
    jumps: Tensor | None
    rule: StopRule

    @cached_property
    def on_host(self) -> tuple[float, ...]:
        """Those of a joint solve as numbers."""
        return tuple(self.times.detach().tolist())

    @cached_property
    def last_coincident(self) -> tuple[int, ...]:
        """For each of them the last one at the same time."""
        times, last = self.on_host, list(range(len(self.on_host)))
        for i in range(len(times) - 2, -1, -1):
            if times[i] == times[i + 1]:
                last[i] = last[i + 1]
        return tuple(last)


class StopRule(NamedTuple):
    """Which times end a step, whatever controls the steps between them.

    every_output: each time in ts does, not only the last. step_ts: further times. jump_ts: the same, and f (or its
    derivative) jumps there: it is evaluated just before for the step that ends there, and anew just after. perturb: f
    is evaluated just after the start of each step, and just before its end, as if it jumped at both. stretch: a step is
    lengthened by up to this factor rather than leave a sliver before a time that must be hit.
    """

    every_output: bool = False
    step_ts: Times | None = None
    jump_ts: Times | None = None
    perturb: bool = False
    stretch: float = 1.01

    @staticmethod
    def from_controller(settings: Any) -> StopRule:
        """Those that a controller was told."""
        s = settings
        return StopRule(s.every_output, s.step_ts, s.jump_ts, s.perturb, s.stretch)

    @property
    def ts_only(self) -> bool:
        """Whether there are none beside those of ts."""
        return self.step_ts is None and self.jump_ts is None

    def resolve(self, ts: Tensor) -> StopRule:
        """The same, with times in place of the callables that make them of ts."""
        made = {name: _made(name, getattr(self, name), ts) for name in ("step_ts", "jump_ts")}
        return self if self.ts_only else self._replace(**made)

    def stop_times(self, ts: Tensor, direction: Tensor) -> StopTimes:
        """The stops of a solve at ts, (T,) or (B, T). direction: its signs, a lane."""
        inner = ts[..., 1:] if self.every_output else ts[..., -1:]
        if self.ts_only:
            return StopTimes(inner, None, self)
        times, jumps = [inner], [torch.zeros_like(inner, dtype=torch.bool)]
        sign = direction.unsqueeze(-1) if ts.ndim == 2 else direction
        rule = self.resolve(ts)
        for fixed, jump in ((rule.step_ts, False), (rule.jump_ts, True)):
            if fixed is None:
                continue
            fixed = torch.as_tensor(fixed, dtype=ts.dtype, device=ts.device)
            fixed = fixed.expand(ts.shape[:-1] + fixed.shape[-1:])
            within = ((fixed - ts[..., :1]) * sign > 0) & ((ts[..., -1:] - fixed) * sign > 0)
            times.append(torch.where(within, fixed, ts[..., -1:]))
            jumps.append(within if jump else torch.zeros_like(within))
        all_times, all_jumps = torch.cat(times, -1), torch.cat(jumps, -1)
        order = torch.argsort(all_times.detach() * sign, dim=-1, stable=True)
        all_times, all_jumps = all_times.gather(-1, order), all_jumps.gather(-1, order)
        if self.jump_ts is None:
            return StopTimes(all_times, None, self)
        # times that coincide are hit once, so the jump is a property of the time
        same = all_times.detach().unsqueeze(-1) == all_times.detach().unsqueeze(-2)
        return StopTimes(all_times, (same & all_jumps.unsqueeze(-2)).any(-1), self)


def _made(name: str, given: Times | None, ts: Tensor) -> Any:
    if not callable(given):
        return given
    made = given(ts)
    check_times(f"what {name} makes of ts", made)
    if made is None:
        raise TypeError(f"{name} must give times where it is callable; got None")
    return torch.as_tensor(made, dtype=ts.dtype, device=ts.device)
