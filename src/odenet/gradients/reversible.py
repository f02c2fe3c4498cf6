"""Exact gradients without stored states: the steps of a reversible method are undone in reverse order.

McCallum & Foster 2024 (arXiv 2410.11648); the method itself is in methods/reversible_method.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import final

import torch
from torch import Tensor

from ..core.leaves import Leaves, as_graph_inputs, expand_over, select
from ..core.norms import max_abs, rms, tolerance_scale
from ..core.torch_func import largest
from ..core.validate import number
from ..engine.batch_index import ALL, RowScatter
from ..engine.integrate import Request
from ..engine.one_sided import initial_carry
from ..engine.problem import Problem
from ..engine.tape import TapeStep
from ..errors import warn
from ..methods.method import Cotangents, Field, StagewiseMethod, Step, StepInput
from ..methods.reversible_method import ReversibleMethod, cast_like, pack_stages, split_carry
from .backward_pass import BackwardPass
from .batch_segments import BatchSegment
from .discrete import TapeBackwardPass
from .failed_samples import succeeded
from .gradient import Gradient, Trajectory, add_cotangents, gradient_bypassed, solve_plain
from .state_store import Checkpoints
from .step_graph import EvaluationGraphs, StepGraph, leaf_times, split_by_acceptance
from .taped_solve import TapedSolve, solve_with_tape

_MAX_DIFFERENCE = 100.0  # largest difference of y and z at the end, in tolerances
# the same with constant steps, relative: Euler's error separates them by 0.01 at steps of 0.02
_MAX_DIFFERENCE_CONSTANT = 0.1
_CHECKPOINTS = 8  # checkpoints of the replay that replaces a failed reconstruction


@final
class Reversible(Gradient):
    """Exact for its numerical solution, with the memory of two states: any explicit method, made reversible.

    The solution is that of the reversible method built on `solve`'s method: of the same order, with different numbers
    and twice the evaluations. It is carried in float64 (f sees its usual dtype), as undoing a step multiplies rounding
    errors by 1 / coupling.

    coupling: in (0, 1]; larger values lose fewer digits backwards, smaller ones make the forward solve more stable.

    After a backward pass the reconstructed initial state is compared with the true one. If more than half of the digits
    of y0's dtype are lost there is a warning, and the gradient is computed again by replaying the steps from a few
    checkpoints: exact, for twice the time or more.
    """

    name = "reversible"

    def __init__(self, coupling: float = 0.99) -> None:
        coupling = number("coupling", coupling)
        if not 0.0 < coupling <= 1.0:
            raise ValueError(f"coupling must lie in (0, 1]; got {coupling!r}")
        self.coupling = coupling

    def __repr__(self) -> str:
        return f"Reversible(coupling={self.coupling})"

    def run(self, p: Problem, request: Request) -> Trajectory:
        p = replace(p, method=ReversibleMethod(p.method, self.coupling))
        tolerance = min(torch.finfo(d).eps for d in p.f.dtypes) ** 0.5
        if gradient_bypassed():
            return check_accuracy(p, solve_plain(p, request))

        def backward(taped: TapedSolve, cotangents: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
            undo = UndoBackwardPass(taped)
            grads = undo.run(cotangents)
            error = undo.reconstruction_error()
            if error <= tolerance:
                return grads
            warn(
                f"gradient='reversible' could not undo the solve: the reconstructed y0 is off by {error:.1e} "
                f"(relative; limit {tolerance:.1e}), as rounding errors grow by 1 / coupling a step, and where the ODE "
                "is unstable backwards. The gradient was computed by replaying the steps, which is exact but slower. "
                "Use a coupling nearer to 1, fewer steps, float64, or gradient=Discrete(checkpoints=...)."
            )
            backward_pass = TapeBackwardPass(
                taped, Checkpoints.initial_state_only(_CHECKPOINTS, taped.problem, taped.steps)
            )
            backward_pass.nfe = undo.nfe
            return backward_pass.run(cotangents)

        return check_accuracy(p, solve_with_tape(p, request, None, None, backward, replayed=False))


@torch.no_grad()
def check_accuracy(p: Problem, trajectory: Trajectory) -> Trajectory:
    """The trajectory; warns if y and z, which both approximate the solution, differ too much.

    Their difference grows by about coupling * exp(h |a|) a step on a mode that decays at the rate a.
    """
    s = trajectory.outcome.state
    if not s.carry:
        return trajectory
    difference = tuple((a - b).detach() for a, b in zip(*split_carry(s.carry), strict=True))
    if p.controller.adaptive:
        scale = tolerance_scale(tuple(y.detach() for y in s.y), p.rtol, p.atol)
        size, limit = rms(tuple(a / b for a, b in zip(difference, scale, strict=True)), p.batched), _MAX_DIFFERENCE
    else:
        size = rms(difference, p.batched) / rms(tuple(y.detach() for y in s.y), p.batched).clamp(min=1e-300)
        limit = _MAX_DIFFERENCE_CONSTANT
    healthy = succeeded(p, s.status)
    size = size if healthy is None else torch.where(healthy, size, 0.0)
    worst = largest(torch.nan_to_num(size, nan=torch.inf, posinf=torch.inf))
    if worst > limit:
        unit = "tolerances" if p.controller.adaptive else "of its size"
        warn(
            f"gradient='reversible': the solution is not accurate. The two states of the reversible method are "
            f"{worst:.2g} {unit} apart (the limit is {limit:g}), as happens where the ODE contracts: on a mode that "
            "decays at the rate a it is stable only for steps below -log(coupling) / a. Use a smaller coupling, step "
            "or tolerance, or gradient=Discrete(checkpoints=...), whose memory is constant too."
        )
    return trajectory


@final
class UndoBackwardPass(BackwardPass):
    """Undoes the steps from the last to the first; `y`, `z` are the current state, both in double precision."""

    def __init__(self, taped: TapedSolve) -> None:
        assert isinstance(taped.problem.method, ReversibleMethod)
        self.method = taped.problem.method
        super().__init__(taped, self.method.base)
        carry, taped.carry = taped.carry, None  # so that the final state is freed on the way back
        carry = self._replay_to_end() if carry is None else carry
        self.y, self.z = split_carry(carry)
        self.end_size = max_abs(self.y or self.problem.y0, self.problem.batched)  # a solve of zero length has no carry
        self.state_scatter = RowScatter()

    @torch.no_grad()
    def _replay_to_end(self) -> Leaves:
        """The final carry, recomputed for a second backward pass over the same solution."""
        y, carry = self.problem.y0, initial_carry(self.problem, self.problem.ts[..., 0], self.problem.y0)
        end_times = RowScatter()
        for n, step in enumerate(self.steps):
            samples = step.problem.samples
            y, carry = end_times.samples.take_from(y, samples), end_times.exchange_leaves(carry, samples)
            y, carry = self.replay(n, (y, carry))
        return end_times.exchange_leaves(carry, ALL)

    def switch_to(self, segment: BatchSegment) -> None:
        n, exchanged = len(self.y), self.state_scatter.exchange_leaves((*self.y, *self.z), segment.problem.samples)
        self.y, self.z = exchanged[:n], exchanged[n:]
        super().switch_to(segment)

    def step_graph(self, n: int) -> StepGraph:
        """The graph of step n: values come from the float64 carry, derivatives are in the state's dtype."""
        (step, _), method = self.replayed_step(n), self.method
        time0, time1 = leaf_times(self.problem, step, self.time_grads_needed)
        f = step.field(self.problem, time0, time1)
        time_bars = self._undo_z(step, f, time0, time1)
        # first half of the step: y1 = l y + (1 - l) z + y_increment(z)
        z = as_graph_inputs(cast_like(self.z, self.problem.y0))
        y_increment, stages = method.base.increment(StepInput(f, time0, time1, z))
        y0 = method.uncouple(self.y, self.z, tuple(x.detach() for x in y_increment))
        self.y = select(step.accept, y0, self.y)
        y = as_graph_inputs(cast_like(self.y, self.problem.y0))
        joined = method.couple(y, z, y_increment)
        unused = as_graph_inputs(tuple(x.new_zeros(()) for x in y))  # the carry's y, which equals y
        attempt = step.as_attempt(
            self.problem, time0, time1, y, (*unused, *z), Step(joined, (), pack_stages(z, y_increment, stages))
        )
        return StepGraph(attempt, (*joined, *z), time_bars)

    def step_vjp(
        self, method: StagewiseMethod, n: int, y_bar: Cotangents, carry_bar: Cotangents
    ) -> tuple[Cotangents, Cotangents]:
        (step, _), reversible, like = self.replayed_step(n), self.method, self.problem.y0
        time0, time1 = step.end_times(self.problem)
        field = step.field(self.problem, time0, time1)
        wide_bar, z_bar = (carry_bar[: len(like)], carry_bar[len(like) :]) if carry_bar else ([None] * len(like),) * 2
        y_bar = add_cotangents(y_bar, wide_bar)
        # undo z1 = z - z_increment(y1)
        f = EvaluationGraphs(field)
        z_increment, _ = method.increment(StepInput(f, time1, time0, cast_like(self.y, like)))
        self.z = select(step.accept, tuple(z + b for z, b in zip(self.z, z_increment, strict=True)), self.z)
        negated = [None if b is None else -b for b in z_bar]
        through = method.vjp_increment(expand_over(time0 - time1, like), f.stages, negated, self.vjp)
        y_bar = add_cotangents(y_bar, through)
        # undo y1 = l y + (1 - l) z + y_increment(z)
        f = EvaluationGraphs(field)
        y_increment, _ = method.increment(StepInput(f, time0, time1, cast_like(self.z, like)))
        self.y = select(step.accept, reversible.uncouple(self.y, self.z, y_increment), self.y)
        through = method.vjp_increment(expand_over(time1 - time0, like), f.stages, y_bar, self.vjp)
        y0_bar, z_share = (
            [None if b is None else b * factor for b in y_bar]
            for factor in (reversible.coupling, 1.0 - reversible.coupling)
        )
        return y0_bar, [*[None] * len(like), *add_cotangents(add_cotangents(z_bar, z_share), through)]

    def _undo_z(self, step: TapeStep, f: Field, time0: Tensor, time1: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Undo z1 = z - z_increment(y1), the last half of the step, and add its VJP.

        Returns the cotangents of time0 and time1.
        """
        method, n, z_bar = self.method, len(self.y), self.carry_bar[len(self.z) :]
        y_leaves = as_graph_inputs(cast_like(self.y, self.problem.y0))
        z_increment, _ = method.base.increment(StepInput(f, time1, time0, y_leaves))
        z0 = tuple(c + b.detach() for b, c in zip(z_increment, self.z, strict=True))
        self.z = select(step.accept, z0, self.z)
        if all(b is None for b in z_bar):
            return None, None
        through, _ = split_by_acceptance(step.accept, z_bar)
        end_times = (time0, time1) if self.time_grads_needed else ()
        grads = self.vjp(z_increment, [None if b is None else -b for b in through], (*y_leaves, *end_times))
        self.y_bar = add_cotangents(self.y_bar, grads[:n])
        return (grads[-2], grads[-1]) if self.time_grads_needed else (None, None)

    def reconstruction_error(self) -> float:
        """The largest difference between the reconstructed and the true initial state of a sample.

        Relative to the larger of initial and final state: an initial state at rounding level, such as after a reset to
        zero, has no digits to lose.
        """
        q = self.problem
        if not self.steps:
            return 0.0
        size = torch.maximum(max_abs(q.y0, q.batched), self.end_size)
        errors = [max_abs(tuple(x - y for x, y in zip(ys, q.y0, strict=True)), q.batched) for ys in (self.y, self.z)]
        worst = torch.maximum(*errors) / torch.where(size > 0, size, 1.0)
        return float(torch.nan_to_num(worst, nan=torch.inf, posinf=torch.inf).max())
