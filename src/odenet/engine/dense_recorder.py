"""Dense output: the local polynomial of every accepted step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from ..core.leaves import Leaves
from ..core.scalars import any_true
from .observer import Observer
from .problem import Problem
from .step_attempt import StepAttempt


@dataclass
class PiecewisePolynomial:
    """The N accepted steps of a solve as local polynomials, stacked on the first axis.

    start, end: (N,) or (N, B); samples that rejected a step have start == end there. y: leaves (N, ...). coefficients:
    for each power of theta, leaves (N, ...).
    """

    start: Tensor
    end: Tensor
    y: Leaves
    coefficients: tuple[Leaves, ...]

    def flatten(self) -> Leaves:
        return (self.start, self.end, *self.y, *(c for cs in self.coefficients for c in cs))

    @staticmethod
    def from_flat(flat: Sequence[Tensor], leaves: int) -> PiecewisePolynomial:
        """Undo `flatten`. leaves: their number in y."""
        y, coefficients = tuple(flat[2 : 2 + leaves]), flat[2 + leaves :]
        powers = tuple(tuple(coefficients[i : i + leaves]) for i in range(0, len(coefficients), leaves))
        return PiecewisePolynomial(flat[0], flat[1], y, powers)

    @staticmethod
    def constant(p: Problem) -> PiecewisePolynomial:
        """One piece, constant: for a solve whose time span is empty."""
        start = p.ts[..., 0]
        flat = (start, start, *p.y0, *(torch.zeros_like(y) for y in p.y0))
        return PiecewisePolynomial.from_flat([x.unsqueeze(0) for x in flat], len(p.y0))


@final
class DenseRecorder(Observer):
    """Records the local polynomial of every accepted step."""

    whole_batch_first: ClassVar[bool] = True  # a sample that takes no step has its state from the first piece

    def __init__(self) -> None:
        self.flat_pieces: list[Leaves] = []

    def observe(self, attempt: StepAttempt) -> None:
        if any_true(attempt.accept):
            flat = flat_piece(attempt)
            self.flat_pieces.append(flat if torch.is_grad_enabled() else tuple(x.detach() for x in flat))

    def pieces(self, p: Problem) -> PiecewisePolynomial:
        return stack_pieces(self.flat_pieces, len(p.y0)) if self.flat_pieces else PiecewisePolynomial.constant(p)


def stack_pieces(flat_pieces: list[Leaves], leaves: int) -> PiecewisePolynomial:
    """Stack the pieces, and empty the list on the way: both together would take twice the memory."""
    columns = [list(column) for column in zip(*flat_pieces, strict=True)]
    flat_pieces.clear()
    stacked: list[Tensor] = []
    for column in columns:
        stacked.append(torch.stack(column))
        column.clear()
    return PiecewisePolynomial.from_flat(stacked, leaves)


def flat_piece(attempt: StepAttempt) -> Leaves:
    """One step of a `PiecewisePolynomial`, flattened; samples outside the current batch have start == end."""
    accept, time0, time1 = attempt.accept, attempt.time0, attempt.time1
    end = torch.where(accept, time1, time0) if isinstance(accept, Tensor) else time1 if accept else time0
    flat = (time0, end, *attempt.y, *(c for cs in attempt.polynomial() for c in cs))
    return tuple([attempt.problem.samples.scatter(x) for x in flat])
