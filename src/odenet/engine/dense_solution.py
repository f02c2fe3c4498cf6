"""Evaluate a dense solution anywhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self, final

import torch
from torch import Tensor

from ..core.dense import evaluate
from ..core.leaves import Leaves, expand_to, select
from ..core.serialization import constant
from .dense_recorder import PiecewisePolynomial
from .problem import Problem


def evaluate_pieces(
    pieces: PiecewisePolynomial, t: Tensor, direction: Tensor, batched: bool, samples: Tensor | None = None
) -> Leaves:
    """The solution at t: (m,) gives leaves (m, ...); per sample t is (B, m) and the leaves (B, m, ...).

    lanes: the samples that t and direction are those of, where they are not all.
    """
    if not batched:
        index = torch.searchsorted((pieces.end * direction).detach().contiguous(), (t * direction).detach())
        place: tuple[Tensor, ...] = (index.clamp(max=len(pieces.end) - 1),)
    else:
        end, start = pieces.end.detach(), pieces.start.detach()
        if samples is not None:
            end, start = end[:, samples], start[:, samples]
        attempts = end != start
        reaches = attempts.unsqueeze(-1) & ((end.unsqueeze(-1) - t.detach()) * direction[:, None] >= 0)
        first = reaches.to(torch.uint8).argmax(0)
        # past the last step taken (by rounding, or after a failure) the last one serves; of none taken, the first row
        last = torch.where(attempts.any(0), len(end) - 1 - attempts.to(torch.uint8).flip(0).argmax(0), 0)
        index = torch.where(reaches.any(0), first, last[:, None].expand_as(first))
        whose = torch.arange(t.shape[0], device=t.device) if samples is None else samples
        place = (index, whose[:, None].expand_as(index))
    start, end = pieces.start[place], pieces.end[place]
    length = end - start
    theta = torch.where(length == 0, torch.zeros_like(t), (t - start) / torch.where(length == 0, 1.0, length))
    y0 = tuple(y[place] for y in pieces.y)
    coefficients = [tuple(c[place] for c in cs) for cs in pieces.coefficients]
    return evaluate(y0, coefficients, tuple(expand_to(theta, y) for y in y0))


@final
@dataclass
class Interpolation:
    """The dense solution by its pieces: times (m,) or (B, m) -> leaves."""

    pieces: PiecewisePolynomial
    direction: Tensor
    batched: bool

    @staticmethod
    def from_pieces(p: Problem, pieces: PiecewisePolynomial | None) -> Interpolation | None:
        return None if pieces is None else Interpolation(pieces, p.direction, p.batched)

    def __call__(self, t: Tensor) -> Leaves:
        return evaluate_pieces(self.pieces, t, self.direction, self.batched)

    def detached(self) -> Self:
        pieces = PiecewisePolynomial.from_flat([constant(x) for x in self.pieces.flatten()], len(self.pieces.y))
        return type(self)(pieces, constant(self.direction), self.batched)


@final
@dataclass
class JoinedInterpolation:
    """The solution at t, (m,) or (B, m): of the part that has it; at the time between two of the one before.

    start, end, going: (K, L): where each of the K parts begins and ends, and the lanes that it is of.
    """

    segments: Sequence[Callable[[Tensor], Leaves]]
    start: Tensor
    end: Tensor
    active: Tensor
    direction: Tensor
    batched: bool

    def __call__(self, t: Tensor) -> Leaves:
        return self._of_samples(t) if self.batched else self._joint(t)

    def _joint(self, t: Tensor) -> Leaves:
        sign = self.direction
        ends = self.end[:, 0] * sign
        which = torch.searchsorted(ends, t.detach() * sign).clamp(max=len(ends) - 1)
        rows = {k: (which == k).nonzero()[:, 0] for k in sorted(set(which.tolist())) or (0,)}
        found = [self.segments[k](t[own]) for k, own in rows.items()]
        order = torch.cat(tuple(rows.values())).argsort()
        return tuple(torch.cat(xs)[order] for xs in zip(*found, strict=True))

    def _of_samples(self, t: Tensor) -> Leaves:
        out, sign = None, self.direction.unsqueeze(1)
        for part, *ends in zip(self.segments, self.start, self.end, self.active, strict=True):
            low, high, going = (x.unsqueeze(1) for x in ends)
            inside = going & ((t.detach() - low) * sign > 0)  # a later solve has what comes after it
            if out is not None and not bool(inside.any()):
                continue
            before, after = (t.detach() - low) * sign < 0, (t.detach() - high) * sign > 0
            values = part(torch.where(before, low, torch.where(after, high, t)))
            out = values if out is None else select(inside, values, out)
        assert out is not None
        return out

    def detached(self) -> Self:
        """Without a graph. Each part is then one that can be."""
        parts = [part.detached() for part in self.segments if isinstance(part, Interpolation)]
        own = {name: constant(getattr(self, name)) for name in ("start", "end", "active", "direction")}
        return replace(self, segments=parts, **own)
