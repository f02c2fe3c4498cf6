"""The continuous adjoint along the stored dense solution, with Gauss quadrature of the parameter gradients.

The GaussAdjoint of SciMLSensitivity (without the quadrature, its InterpolatingAdjoint). The state is not solved
backwards, so it cannot drift. Stored are the local polynomials of all steps, or checkpoints to recompute them from.
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
from ..core.validate import integer
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
        `checkpoints` states and recomputes the polynomials between two of them when the backward solve reaches them.
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
        self.checkpoints = integer("checkpoints", self.checkpoints, minimum=2, maximum=None)

    def solve_forward(self, q: Problem, request: Request) -> tuple[NumericalSolution, Callable[[Leaves], AdjointSolve]]:
        recorder = OutputRecorder(q)
        if self.interpolate == "dense":
            dense_recorder = DenseRecorder()
            solved = integrate(q, request, recorder, (dense_recorder,))
            solution = StoredSolution(q)
            solution.load(dense_recorder.flat_pieces)
            return solved, lambda captured: AdjointSolve(self, q, AdjointField(q.f, captured, solution))
        starts = SpacedStates(self.checkpoints)
        tape = Tape(recorder, starts)
        solved = integrate(q, request, recorder, (tape,))
        steps = tape.steps
        return solved, lambda captured: SegmentedAdjointSolve(self, q, captured, starts, steps)


class StoredSolution:
    """y(t) from the local polynomials that are loaded."""

    def __init__(self, q: Problem) -> None:
        self.problem, self.num_leaves = q, len(q.y0)
        self.pieces: list[Leaves] = []
        self.stacked: PiecewisePolynomial | None = None
        self.end_times: list[float] = []

    def load(self, pieces: list[Leaves]) -> None:
        self.pieces, self.stacked = pieces, None
        if self.problem.batched:
            self.stacked = stack_pieces(pieces, self.num_leaves) if pieces else None
        else:
            self.sign = float(self.problem.direction)
            self.end_times = [float(piece[1]) * self.sign for piece in pieces]

    def __call__(self, t: Tensor, sample_index: Tensor | None = None) -> Leaves:
        if self.stacked is not None:
            direction = self.problem.direction if sample_index is None else self.problem.direction[sample_index]
            values = evaluate_pieces(self.stacked, t[:, None], direction, True, sample_index)
            return tuple(x[:, 0] for x in values)
        leaves = self.pieces[min(bisect_left(self.end_times, float(t) * self.sign), len(self.end_times) - 1)]
        piece = PiecewisePolynomial.from_flat(leaves, self.num_leaves)
        theta = (t - piece.start) / (piece.end - piece.start)
        return evaluate(piece.y, piece.coefficients, tuple(expand_to(theta, y) for y in piece.y))


@final
class SpacedStates(StepStore):
    """The initial state of every `stride`-th step; the stride doubles when `capacity` is exceeded."""

    def __init__(self, maximum: int) -> None:
        self.capacity, self.stride = maximum, 1
        self.starts: list[Start] = []

    def store(self, n: int, attempt: StepAttempt) -> None:
        if n % self.stride == 0 and len(self.starts) == self.capacity:
            self.starts, self.stride = self.starts[::2], 2 * self.stride
        if n % self.stride == 0:
            self.starts.append((attempt.y, attempt.carry))


class SegmentedAdjointSolve(AdjointSolve):
    """Replays the steps after each checkpoint for their polynomials, and solves the adjoint back along them."""

    def __init__(
        self, settings: GaussAdjoint, q: Problem, captured: Leaves, starts: SpacedStates, steps: list[TapeStep]
    ) -> None:
        self.solution = StoredSolution(q)
        super().__init__(settings, q, AdjointField(q.f, captured, self.solution))
        self.states, self.steps, self.full_segment = starts, steps, BatchSegment(q)

    def segments(self, start: Tensor) -> Iterator[Tensor]:
        for k in reversed(range(len(self.states.starts))):
            first = k * self.states.stride
            self.solution.load([])  # free the polynomials of the later segment first
            self.solution.load(self._replay_pieces(first, self.states.starts[k]))
            yield where(self.needed, self._start_time(self.steps[first]), start)
        yield start

    def _start_time(self, step: TapeStep) -> Tensor:
        """The start time of a step; for samples that had left the batch, the end of their solution."""
        return step.problem.samples.scatter_into(self.end_time, step.end_times(self.forward_problem)[0])

    def _replay_pieces(self, first: int, start: Start) -> list[Leaves]:
        """Local polynomials of the steps from number `first` up to the next checkpoint."""
        pieces: list[Leaves] = []
        segment, samples = self.full_segment, self.steps[first].problem.samples
        for step in self.steps[first : first + self.states.stride]:
            start, samples = take_start(start, samples, step.problem.samples), step.problem.samples
            if segment.problem.samples.index is not samples.index:
                segment = BatchSegment(step.problem)
            attempt, start = segment.replay(step, start)
            pieces.append(flat_piece(attempt))
            self.nfe = segment.add_evaluations(self.nfe, step.accept)
        return pieces
