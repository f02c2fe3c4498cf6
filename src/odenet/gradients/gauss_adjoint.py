"""The continuous adjoint along the stored dense solution; parameters by Gauss quadrature outside the ODE's state.

The GaussAdjoint of SciMLSensitivity (without the quadrature, its InterpolatingAdjoint). The state is not solved
backwards, so it cannot drift. Stored is the local polynomial of every step, or checkpoints to compute it from.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass
from typing import final

from torch import Tensor

from ..core.dense import evaluate
from ..core.leaves import Leaves, expand_to
from ..core.scalars import where
from ..engine.dense_recorder import DenseRecorder, PiecewisePolynomial, flat_piece, stack_pieces
from ..engine.dense_solution import evaluate_pieces
from ..engine.integrate import NumericalSolution, Request, integrate
from ..engine.output_recorder import OutputRecorder
from ..engine.problem import Problem
from ..engine.step_attempt import StepAttempt
from ..engine.tape import StepStore, Tape, TapeStep
from ..errors import unknown_name
from .adjoint_field import AdjointField
from .batch_segments import BatchSegment, Start, take_start
from .continuous_adjoint import AdjointSolve, ContinuousAdjoint


@final
@dataclass(eq=False, repr=False)
class GaussAdjoint(ContinuousAdjoint):
    """The continuous adjoint along the dense forward solution: approximate, without backward drift.

    interpolate: "dense" stores the local polynomial of every step; "checkpoints" stores between `checkpoints` / 2 and
    `checkpoints` states and computes the polynomials between two of them again when the backward solve gets there.
    rtol, atol, method, norm, controller, max_steps: see `ContinuousAdjoint`.
    """

    name = "gauss"

    _: KW_ONLY
    interpolate: str = "dense"
    checkpoints: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.interpolate not in ("dense", "checkpoints"):
            raise unknown_name("interpolate", str(self.interpolate), ("dense", "checkpoints"))
        count = self.checkpoints
        if isinstance(count, bool) or not isinstance(count, int) or count < 2:
            raise ValueError(f"checkpoints must be an int of at least 2; got {count!r}")

    def forwards(self, q: Problem, request: Request) -> tuple[NumericalSolution, Callable[[Leaves], AdjointSolve]]:
        record = OutputRecorder(q)
        if self.interpolate == "dense":
            everywhere = DenseRecorder()
            solved = integrate(q, request, record, (everywhere,))
            path = StoredSolution(q)
            path.enter(everywhere.flat_pieces)
            return solved, lambda captured: AdjointSolve(self, q, AdjointField(q.f, captured, path))
        starts = SpacedStates(self.checkpoints)
        tape = Tape(record, starts)
        solved = integrate(q, request, record, (tape,))
        entries = tape.steps
        return solved, lambda captured: SegmentedAdjointSolve(self, q, captured, starts, entries)


class StoredSolution:
    """y(t) on the pieces at hand."""

    def __init__(self, q: Problem) -> None:
        self.q, self.leaves = q, len(q.y0)
        self.parts: list[Leaves] = []
        self.stacked: PiecewisePolynomial | None = None
        self.ends: list[float] = []

    def enter(self, parts: list[Leaves]) -> None:
        self.parts, self.stacked = parts, None
        if self.q.batched:
            self.stacked = stack_pieces(parts, self.leaves) if parts else None
        else:
            self.sign = float(self.q.direction)
            self.ends = [float(part[1]) * self.sign for part in parts]

    def __call__(self, t: Tensor, lanes: Tensor | None = None) -> Leaves:
        if self.stacked is not None:
            direction = self.q.direction if lanes is None else self.q.direction[lanes]
            values = evaluate_pieces(self.stacked, t[:, None], direction, True, lanes)
            return tuple(x[:, 0] for x in values)
        flat = self.parts[min(bisect_left(self.ends, float(t) * self.sign), len(self.ends) - 1)]
        piece = PiecewisePolynomial.from_flat(flat, self.leaves)
        theta = (t - piece.start) / (piece.end - piece.start)
        return evaluate(piece.y, piece.coefficients, tuple(expand_to(theta, y) for y in piece.y))


@final
class SpacedStates(StepStore):
    """The start of every `stride`-th step; the stride doubles when there are more than `most`."""

    def __init__(self, most: int) -> None:
        self.most, self.stride = most, 1
        self.held: list[Start] = []

    def store(self, n: int, attempt: StepAttempt) -> None:
        if n % self.stride == 0 and len(self.held) == self.most:
            self.held, self.stride = self.held[::2], 2 * self.stride
        if n % self.stride == 0:
            self.held.append((attempt.y, attempt.carry))


class SegmentedAdjointSolve(AdjointSolve):
    """Takes the steps from each checkpoint again, for their polynomials, and goes back along them."""

    def __init__(
        self, how: GaussAdjoint, q: Problem, captured: Leaves, starts: SpacedStates, entries: list[TapeStep]
    ) -> None:
        self.path = StoredSolution(q)
        super().__init__(how, q, AdjointField(q.f, captured, self.path))
        self.starts, self.entries, self.whole = starts, entries, BatchSegment(q)

    def segments(self, start: Tensor) -> Iterator[Tensor]:
        for k in reversed(range(len(self.starts.held))):
            first = k * self.starts.stride
            self.path.enter([])  # those of the segment after it go first
            self.path.enter(self._pieces(first, self.starts.held[k]))
            yield where(self.asked, self._start_of(self.entries[first]), start)
        yield start

    def _start_of(self, e: TapeStep) -> Tensor:
        """Where a step starts; where the solution ends for samples that had left the batch."""
        return e.problem.samples.scatter_into(self.reached, e.end_times(self.q)[0])

    def _pieces(self, first: int, start: Start) -> list[Leaves]:
        parts: list[Leaves] = []
        part, samples = self.whole, self.entries[first].problem.samples
        for e in self.entries[first : first + self.starts.stride]:
            start, samples = take_start(start, samples, e.problem.samples), e.problem.samples
            if part.q.samples.index is not samples.index:
                part = BatchSegment(e.problem)
            attempt, start = part.replay(e, start)
            parts.append(flat_piece(attempt))
            self.nfe = part.charge(self.nfe, e.accept)
        return parts
