"""Where an event ends a solve, or that of a sample: the first root of its function on the dense output of the steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from ..control.base import Verdict
from ..core.dense import Coefficients, evaluate
from ..core.lanes import Flag, Number
from ..core.leaves import Leaves, spread
from ..core.roots import Sought, first_roots, nodes
from .advance import Clock, Move, State, nudged
from .drive import Attempt, Found
from .problem import Problem

_EPS = 2.0**-52
_ROUNDING = 64 * _EPS  # of the values on a step: a value below that is zero
_JUMP = 1e-3  # of the values on a step: one that is further from zero at its root is taken for no better root
_APART = 1e-3  # of a step: where the rate of a value is measured around its root
# Of the largest value so far: one that is further from zero at its root, and changes by as much within _APART of it,
# has jumped across zero. One that changes less is where the dense output is off.
_JUMPED = 0.25
_CLOSE = tuple(8.0**-k for k in range(6, 0, -1))  # of the first node: where to look for the sign just after an event


class Values(ABC):
    """The values of all event functions; each lane has m of them."""

    @abstractmethod
    def __call__(self, t: Tensor, y: Leaves, rows: Tensor | None) -> Tensor:
        """(m,), or (B, m) per sample; of these rows of the batch, where it is `divisible`."""

    @abstractmethod
    def divisible(self, p: Problem) -> bool:
        """Whether the functions work on a part of the batch."""


@dataclass(frozen=True)
class Events:
    """What is looked for, on L lanes (one, where they share their steps).

    directions: +1, -1 or 0, (m,). wanted: values that are looked for, (L, m). first: those that come before others at
    the same time, (L, m). signs: those at the start, (L, m), where 0 is that of the first value that differs from zero
    by more than `quiet`, (L, m).
    """

    values: Values
    directions: Tensor
    wanted: Tensor
    first: Tensor
    signs: Tensor
    quiet: Tensor


@final
class Seeker:
    """Looks for an event in each step that was accepted, and takes the one it lies in again, to end at the event.

    Roots are those of the method's own dense output; where the step that ends there says that the value is not zero, it
    is taken once more, to end where its rate says. Of the batch, `rows` are at hand.
    """

    def __init__(self, p: Problem, events: Events, attempt: Attempt) -> None:
        self.events, self.plain = events, attempt
        self.clock: Clock | None = None
        lane = p.direction.reshape(-1)
        count, one = len(lane), torch.zeros_like(lane)
        self.t, self.rate, self.zero, self.limit = one + torch.inf, one.clone(), one.clone(), one.clone()
        self.scale = one.clone()
        self.rounding = 16 * max(torch.finfo(y.dtype).eps for y in p.y0)
        self.value = torch.full((count,), -1, dtype=torch.int64, device=lane.device)
        self.polished, self.jumped = self.value >= 0, self.value >= 0
        self.signs, self.after, self.quiet = events.signs.clone(), events.signs.clone(), events.quiet.clone()
        self.peaks = torch.zeros_like(self.quiet)  # the largest absolute value until the event
        self.last = torch.where(self.quiet > 0, 0.0, self._values(p, p.ts[..., 0], p.y0))

    @property
    def found(self) -> Found:
        peak = self.peaks.gather(-1, self.value.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        return Found(self.t, self.value, self.after, self.zero, peak, self.jumped)

    def attempt(self, p: Problem, clock: Clock, s: State) -> tuple[Move, Verdict]:
        rows = _rows(p)
        if clock is not self.clock:  # samples have left the batch
            self.clock, there = clock, self.value[rows] >= 0
            if bool(there.any()):
                clock.cut(there, s.stop, self.t[rows])
        move, verdict = self.plain(p, clock, s)
        with torch.no_grad():
            accept = _lanes(move.accept, p)
            found = self.value[rows] >= 0
            ends = accept & found & _lanes(move.hit, p)
            back = torch.zeros_like(accept)
            if bool((accept & ~found).any()):
                back = self._look(p, move, accept & ~found, rows)
            if bool(ends.any()):
                back = back | self._polish(p, move, ends, rows)
            if not bool(back.any()):
                move.ends = ends if p.batched else bool(ends)
                return move, verdict
            clock.cut(back if p.batched else True, s.stop, self.t[rows] if p.batched else float(self.t))
            return _taken_back(p, s, move, verdict, back, ends)

    def _look(self, p: Problem, move: Move, lanes: Tensor, rows: Tensor) -> Tensor:
        """Look for the first event in a step of these lanes; gives those that have one."""
        before = p.f.calls
        path = Path(self.events.values, p, move)
        move.sought, move.search_calls = lanes, p.f.calls - before
        wanted = lanes.unsqueeze(-1) & self.events.wanted[rows]
        samples = [self.last[rows], *(path.same(x) for x in nodes()[1:-1]), self._values(p, move.time1, move.step.y)]
        column = torch.stack(samples, -1)
        if not bool((torch.isfinite(column) | ~wanted.unsqueeze(-1)).all()):
            raise _not_finite(column, wanted, move)
        column = torch.where(torch.isfinite(column), column, 0.0)
        quiet, signs = self.quiet[rows], self.signs[rows]
        column = _silenced(column, quiet.unsqueeze(-1))
        signs, left = self._first_signs(path, column, signs, quiet, wanted)

        def g(theta: Tensor, live: Tensor) -> Tensor:
            found = path.each(theta, live)
            if not bool((torch.isfinite(found) | ~live).all()):
                raise _not_finite(found.unsqueeze(-1), live, move)
            return _silenced(found, quiet)

        sought = Sought(self.events.directions, torch.where(wanted, signs, 0.0), left, quiet == 0)
        roots = first_roots(g, column, sought)
        where = roots.where.amin(-1)
        tied = roots.where <= where.unsqueeze(-1)
        value = (tied.to(torch.uint8) + (tied & self.events.first[rows]).to(torch.uint8)).argmax(-1)
        found = lanes & torch.isfinite(where)
        end = column[..., -1]
        at_end = torch.where(end != 0, end.sign(), signs)
        self._put("signs", rows, lanes, at_end)
        self._put("last", rows, lanes, end)
        before_it = torch.tensor(nodes(), dtype=where.dtype, device=where.device) <= where[:, None, None]
        self._put("peaks", rows, lanes, torch.maximum(self.peaks[rows], (column.abs() * before_it).amax(-1)))
        self._put("quiet", rows, lanes, torch.where(end != 0, 0.0, quiet))
        if bool(found.any()):
            self._place(p, path, move, rows, found, roots.where, roots.rising, signs, value, column)
        return found

    def _place(
        self, p: Problem, path: Path, move: Move, rows: Tensor, found: Tensor, where: Tensor, rising: Tensor,
        signs: Tensor, value: Tensor, column: Tensor,
    ) -> None:  # fmt: skip
        """Keep the events that were found: their times, and how the values stand and change there."""
        pick = value.unsqueeze(-1)
        first = where.gather(-1, pick)
        chosen, live = torch.arange(where.shape[-1], device=where.device) == pick, found.unsqueeze(-1)
        at = torch.where(torch.isfinite(first), first, 0.5).expand_as(where)
        here = path.each(at, live.expand_as(chosen))
        after = torch.where(here != 0, here.sign(), signs)
        after = torch.where(torch.isfinite(where), torch.where(rising, -1.0, 1.0), after)  # its root is still ahead
        after = torch.where(chosen, -after, after)
        low, high = (at - _APART).clamp(min=0.0), (at + _APART).clamp(max=1.0)
        t0, t1 = _lanes(move.t0, p), _lanes(move.t1, p)
        rates = (path.each(high, chosen & live) - path.each(low, chosen & live)) / (high - low)
        length = t1 - t0
        # where a step ends at the event it is no step any more
        least = 8 * _EPS * torch.maximum(t0.abs(), t1.abs())
        t = t0 + length.sign() * torch.maximum(first.squeeze(-1) * length.abs(), least)
        self._put("t", rows, found, t)
        self._put("value", rows, found, value)
        self._put("after", rows, found, after)
        self._put("rate", rows, found, rates.gather(-1, pick).squeeze(-1) / length)
        self._put("limit", rows, found, t1)
        halfway = path.each(at / 2, live.expand_as(chosen))  # the nodes may all lie past an event
        self._put("peaks", rows, found, torch.maximum(self.peaks[rows], halfway.abs()))
        self._put("scale", rows, found, column.abs().amax(-1).gather(-1, pick).squeeze(-1))

    def _polish(self, p: Problem, move: Move, lanes: Tensor, rows: Tensor) -> Tensor:
        """Move the ends of steps to events by what their values still are there; gives lanes that are to try again."""
        values, pick = self._values(p, move.time1, move.step.y), self.value[rows].clamp(min=0).unsqueeze(-1)
        left, peak = (x.gather(-1, pick).squeeze(-1) for x in (values, self.peaks[rows]))
        t0, limit, rate = _lanes(move.t0, p), self.limit[rows], self.rate[rows]
        rise = rate.abs() * (limit - t0).abs() * 2 * _APART  # around the root, on the step that it was found in
        noise = self.rounding * self.scale[rows] + 1e-300
        jumped = (left.abs() > _JUMPED * peak) & (rise > left.abs() / 2)
        self._put("jumped", rows, lanes, jumped)
        self._put("zero", rows, lanes, torch.where(jumped, noise, 2 * left.abs() + noise))
        t = self.t[rows] - left / rate
        sign, least = (limit - t0).sign(), 8 * _EPS * torch.maximum(t0.abs(), limit.abs())
        inside = torch.isfinite(t) & ((t - t0) * sign >= least) & ((limit - t) * sign >= 0)
        size = left.abs() / self.scale[rows]
        again = lanes & ~self.polished[rows] & inside & (size > _ROUNDING) & (size < _JUMP) & (t != self.t[rows])
        self._put("t", rows, again, t)
        self._put("polished", rows, again, again)
        return again

    def _first_signs(
        self, path: Path, column: Tensor, signs: Tensor, quiet: Tensor, wanted: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The signs before the step, and from where on they hold.

        After an event, a value that is zero has the sign that it takes first, maybe long before the first node.
        """
        left, unknown = torch.zeros_like(signs), wanted & (signs == 0)
        if not bool(unknown.any()):
            return signs, left
        risen = unknown & (quiet > 0)
        if bool(risen.any()):
            for part in _CLOSE:
                theta = torch.full_like(left, part * nodes()[1])
                value = _silenced(path.each(theta, risen), quiet)
                known = risen & (value != 0)
                signs, left = torch.where(known, value.sign(), signs), torch.where(known, theta, left)
                risen = risen & ~known
                if not bool(risen.any()):
                    break
        loud = column != 0
        first = column.gather(-1, loud.to(torch.uint8).argmax(-1, keepdim=True)).squeeze(-1).sign()
        return torch.where(unknown & (signs == 0), first, signs), left

    def _values(self, p: Problem, t: Tensor, y: Leaves) -> Tensor:
        with torch.no_grad():
            return _as_lanes(self.events.values(t, y, None if p.lanes is None else p.lanes.index), p.batched)

    def _put(self, name: str, rows: Tensor, lanes: Tensor, x: Tensor) -> None:
        """Keep x of these lanes among those at hand."""
        whole = getattr(self, name)
        whole[rows[lanes]] = x[lanes].to(whole.dtype)


class Path:
    """The event functions along one step, at theta in [0, 1]."""

    def __init__(self, values: Values, p: Problem, move: Move) -> None:
        self.values, self.p, self.move = values, p, move
        f = nudged(p, move.time0, move.time1, move.jumped, move.jumps)
        self.coefficients = p.method.polynomial(f, move.time0, move.time1, move.y, move.step)
        self.rows = None if p.lanes is None else p.lanes.index
        self.parts = p.batched and values.divisible(p)

    def same(self, theta: float) -> Tensor:
        """(L, m): all values at the same theta."""
        move = self.move
        t = move.time0 + theta * (move.time1 - move.time0)
        over = tuple(spread(torch.full_like(move.time0, theta), y) for y in move.y)
        return _as_lanes(self.values(t, evaluate(move.y, self.coefficients, over), self.rows), self.p.batched)

    def each(self, theta: Tensor, live: Tensor) -> Tensor:
        """(L, m): each value at its own theta, of those that are live."""
        out = torch.zeros_like(theta)
        for k in range(theta.shape[-1]):
            lanes = live[:, k].nonzero()[:, 0]
            if not len(lanes):
                continue
            if not self.parts or 2 * len(lanes) > len(theta):
                out[:, k] = self._at(theta[:, k], None)[:, k]
            else:
                out[lanes, k] = self._at(theta[lanes, k], lanes)[:, k]
        return out

    def _at(self, theta: Tensor, lanes: Tensor | None) -> Tensor:
        move, rows = self.move, self.rows
        time0, time1, y, coefficients = move.time0, move.time1, move.y, self.coefficients
        if lanes is not None:
            rows = lanes if rows is None else rows[lanes]
            time0, time1, y = time0[lanes], time1[lanes], _taken(y, lanes)
            coefficients: Coefficients = tuple(_taken(c, lanes) for c in coefficients)
        theta = theta if self.p.batched else theta[0]
        at = evaluate(y, coefficients, tuple(spread(theta, x) for x in y))
        return _as_lanes(self.values(time0 + theta * (time1 - time0), at, rows), self.p.batched)


def _taken(y: Leaves, lanes: Tensor) -> Leaves:
    return tuple(x.index_select(0, lanes) for x in y)


def _taken_back(p: Problem, s: State, move: Move, verdict: Verdict, back: Tensor, ends: Tensor) -> tuple[Move, Verdict]:
    """The move with these lanes not accepted, and to be tried again as they were."""
    if not p.batched:
        move.accept = move.ends = False
        return move, verdict._replace(accept=False, h=s.h, memory=s.memory)
    move.accept, move.ends = move.accept & ~back, ends & ~back
    memory = tuple(torch.where(back, a, b) for a, b in zip(s.memory, verdict.memory, strict=True))
    return move, verdict._replace(accept=move.accept, h=torch.where(back, s.h, verdict.h), memory=memory)


def _rows(p: Problem) -> Tensor:
    """The rows of the batch that are at hand."""
    if p.lanes is not None:
        return p.lanes.index
    return torch.arange(len(p.direction) if p.batched else 1, device=p.direction.device)


def _lanes(x: Number | Flag, p: Problem) -> Tensor:
    """A number or flag of each lane as a tensor (L,)."""
    if p.batched:
        return x.detach()
    return torch.tensor([x], dtype=torch.bool if isinstance(x, bool) else p.ts.dtype, device=p.ts.device)


def _as_lanes(values: Tensor, batched: bool) -> Tensor:
    """(L, m) in float64."""
    return (values if batched else values.unsqueeze(0)).double()


def _silenced(x: Tensor, quiet: Tensor) -> Tensor:
    return torch.where(x.abs() <= quiet, 0.0, x)


def _not_finite(column: Tensor, wanted: Tensor, move: Move) -> ValueError:
    bad = (~torch.isfinite(column) & wanted.unsqueeze(-1)).nonzero()[0].tolist()
    t0 = float(torch.as_tensor(move.t0).reshape(-1)[bad[0]])
    sample = f", sample {bad[0]}" if isinstance(move.t0, Tensor) else ""
    return ValueError(
        f"value {bad[1]} of the event functions is {float(column[tuple(bad)])} in the step from t={t0:.6g}{sample}: "
        "an event function must be finite along the solution, also a step past the event (clamp what it takes the log "
        "or root of)"
    )
