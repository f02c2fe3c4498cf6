"""The dense solution of a solve: its value at any time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self, final

import torch
from torch import Tensor

from ..core.dense import evaluate
from ..core.leaves import Leaves, expand_to, select
from ..core.serialization import detach_leaf
from .dense_recorder import PiecewisePolynomial
from .problem import Problem


def evaluate_pieces(
    pieces: PiecewisePolynomial, t: Tensor, direction: Tensor, batched: bool, samples: Tensor | None = None
) -> Leaves:
    """The solution at t: (m,) gives leaves (m, ...); per sample (B, m) gives leaves (B, m, ...).

    samples: numbers of the samples that t and direction belong to, where these are not all.
    """
    if not batched:
        step = torch.searchsorted((pieces.end * direction).detach().contiguous(), (t * direction).detach())
        index: tuple[Tensor, ...] = (step.clamp(max=len(pieces.end) - 1),)
    else:
        end, start = pieces.end.detach(), pieces.start.detach()
        if samples is not None:
            end, start = end[:, samples], start[:, samples]
        accepted = end != start
        reaches = accepted.unsqueeze(-1) & ((end.unsqueeze(-1) - t.detach()) * direction[:, None] >= 0)
        first = reaches.to(torch.uint8).argmax(0)
        # Past the last accepted step (by rounding, or after a failure) that step is extended; without one, the first
        # row has the state.
        last = torch.where(accepted.any(0), len(end) - 1 - accepted.to(torch.uint8).flip(0).argmax(0), 0)
        step = torch.where(reaches.any(0), first, last[:, None].expand_as(first))
        numbers = torch.arange(t.shape[0], device=t.device) if samples is None else samples
        index = (step, numbers[:, None].expand_as(step))
    start, end = pieces.start[index], pieces.end[index]
    length = end - start
    theta = torch.where(length == 0, torch.zeros_like(t), (t - start) / torch.where(length == 0, 1.0, length))
    y0 = tuple(y[index] for y in pieces.y)
    coefficients = [tuple(c[index] for c in cs) for cs in pieces.coefficients]
    return evaluate(y0, coefficients, tuple(expand_to(theta, y) for y in y0))


@final
@dataclass
class Interpolation:
    """The dense solution of one solve: times (m,) or (B, m) -> leaves, see `evaluate_pieces`."""

    pieces: PiecewisePolynomial
    direction: Tensor
    batched: bool

    @staticmethod
    def from_pieces(p: Problem, pieces: PiecewisePolynomial | None) -> Interpolation | None:
        return None if pieces is None else Interpolation(pieces, p.direction, p.batched)

    def __call__(self, t: Tensor) -> Leaves:
        return evaluate_pieces(self.pieces, t, self.direction, self.batched)

    def detached(self) -> Self:
        pieces = PiecewisePolynomial.from_flat([detach_leaf(x) for x in self.pieces.flatten()], len(self.pieces.y))
        return type(self)(pieces, detach_leaf(self.direction), self.batched)


@final
@dataclass
class JoinedInterpolation:
    """The dense solution of a solve with events, from those of its K segments; at an event it is the state before.

    start, end, active: (K, L), for each of the L samples (one in a joint solve): the ends of each segment, and whether
    the sample took part in it.
    """

    segments: Sequence[Callable[[Tensor], Leaves]]
    start: Tensor
    end: Tensor
    active: Tensor
    direction: Tensor
    batched: bool

    def __call__(self, t: Tensor) -> Leaves:
        return self._per_sample(t) if self.batched else self._joint(t)

    def _joint(self, t: Tensor) -> Leaves:
        sign = self.direction
        ends = self.end[:, 0] * sign
        segment = torch.searchsorted(ends, t.detach() * sign).clamp(max=len(ends) - 1)
        rows = {k: (segment == k).nonzero()[:, 0] for k in sorted(set(segment.tolist())) or (0,)}
        values = [self.segments[k](t[index]) for k, index in rows.items()]
        order = torch.cat(tuple(rows.values())).argsort()
        return tuple(torch.cat(xs)[order] for xs in zip(*values, strict=True))

    def _per_sample(self, t: Tensor) -> Leaves:
        out, sign = None, self.direction.unsqueeze(1)
        for segment, *bounds in zip(self.segments, self.start, self.end, self.active, strict=True):
            low, high, active = (x.unsqueeze(1) for x in bounds)
            inside = active & ((t.detach() - low) * sign > 0)  # a later segment overwrites what comes after its start
            if out is not None and not bool(inside.any()):
                continue
            before, after = (t.detach() - low) * sign < 0, (t.detach() - high) * sign > 0
            values = segment(torch.where(before, low, torch.where(after, high, t)))
            out = values if out is None else select(inside, values, out)
        assert out is not None
        return out

    def detached(self) -> Self:
        """Without a graph; every segment is an `Interpolation`."""
        segments = [segment.detached() for segment in self.segments if isinstance(segment, Interpolation)]
        constants = {name: detach_leaf(getattr(self, name)) for name in ("start", "end", "active", "direction")}
        return replace(self, segments=segments, **constants)
