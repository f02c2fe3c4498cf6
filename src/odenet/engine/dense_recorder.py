"""Dense output: the local polynomial of every accepted step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from ..core.leaves import Leaves
from ..core.scalars import any_true, where
from .observer import Observer
from .problem import Problem
from .step_attempt import StepAttempt


@dataclass
class PiecewisePolynomial:
    """The accepted steps of a solve as local polynomials, stacked on the first axis (N steps).

    start, end: (N,) or (N, B); a lane for which a step was not accepted has start == end there. y: leaves (N, ...).
    coefficients: for each power of theta, leaves (N, ...).
    """

    start: Tensor
    end: Tensor
    y: Leaves
    coefficients: tuple[Leaves, ...]

    def flatten(self) -> Leaves:
        return (self.start, self.end, *self.y, *(c for cs in self.coefficients for c in cs))

    @staticmethod
    def from_flat(flat: Sequence[Tensor], leaves: int) -> PiecewisePolynomial:
        y, rest = tuple(flat[2 : 2 + leaves]), flat[2 + leaves :]
        powers = tuple(tuple(rest[i : i + leaves]) for i in range(0, len(rest), leaves))
        return PiecewisePolynomial(flat[0], flat[1], y, powers)

    @staticmethod
    def constant(p: Problem) -> PiecewisePolynomial:
        """Of a solve of no length: one constant piece."""
        start = p.ts[..., 0]
        flat = (start, start, *p.y0, *(torch.zeros_like(y) for y in p.y0))
        return PiecewisePolynomial.from_flat([x.unsqueeze(0) for x in flat], len(p.y0))


@final
class DenseRecorder(Observer):
    """Keeps the local polynomial of every accepted step."""

    whole_batch_first: ClassVar[bool] = True  # a sample that never moves has its state from there

    def __init__(self) -> None:
        self.parts: list[Leaves] = []

    def observe(self, attempt: StepAttempt) -> None:
        if any_true(attempt.accept):
            flat = flat_piece(attempt)
            self.parts.append(flat if torch.is_grad_enabled() else tuple(x.detach() for x in flat))

    def pieces(self, p: Problem) -> PiecewisePolynomial:
        return stack_pieces(self.parts, len(p.y0)) if self.parts else PiecewisePolynomial.constant(p)


def stack_pieces(parts: list[Leaves], leaves: int) -> PiecewisePolynomial:
    """The steps in `parts`, which is emptied on the way: both together would be twice the memory."""
    columns = [list(column) for column in zip(*parts, strict=True)]
    parts.clear()
    flat = []
    for column in columns:
        flat.append(torch.stack(column))
        column.clear()
    return PiecewisePolynomial.from_flat(flat, leaves)


def flat_piece(attempt: StepAttempt) -> Leaves:
    """One step of `PiecewisePolynomial`, flat; of samples that are not at hand it has start == end."""
    end = where(attempt.accept, attempt.time1, attempt.time0)
    flat = (attempt.time0, end, *attempt.y, *(c for cs in attempt.polynomial() for c in cs))
    return tuple([attempt.problem.samples.scatter(x) for x in flat])
