"""Exact gradients without a stored state: the steps of a reversible method are undone, one after the other.

McCallum & Foster 2024 (arXiv 2410.11648); the method itself is in methods/reversible_method.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import final

import torch
from torch import Tensor

from ..core.leaves import Leaves, expand_over, new_leaves, select
from ..core.norms import max_abs, rms, tolerance_scale
from ..core.torch_func import largest
from ..core.validate import number
from ..engine.batch_index import ALL, RowScatter
from ..engine.integrate import Request
from ..engine.problem import Problem
from ..engine.tape import TapeStep
from ..errors import warn
from ..methods.method import Cotangents, Field, StagewiseMethod, Step, StepInput
from ..methods.reversible_method import ReversibleMethod, halves, packed, to_float32
from .backward_pass import BackwardPass
from .batch_segments import BatchSegment
from .discrete import TapeBackwardPass
from .failed_samples import succeeded
from .gradient import Gradient, Trajectory, add_counts, direct, solve_plain
from .state_store import Checkpoints
from .step_graph import EvaluationGraphs, StepGraph, divided, leaf_ends
from .taped_solve import TapedSolve, solve_with_tape

_APART = 100.0  # tolerances that y and z may differ by at the end
_APART_CONSTANT = 0.1  # relative, with constant steps: Euler's own error parts them by 0.01 at steps of 0.02
_SLOTS = 8  # states held when the steps cannot be undone and are taken again instead


@final
class Reversible(Gradient):
    """Exact for its numerical solution, with the memory of two states: any explicit method, made reversible.

    The solution is that of the reversible method on top of `solve`'s method: of the same order, not the same numbers,
    and with twice the evaluations. It is carried in float64 inside (f sees its own dtype), since undoing a step
    multiplies rounding errors by 1 / coupling. coupling: in (0, 1]; nearer to 1 loses fewer digits backwards, further
    from it the forward solve is stabler.

    After a backward pass the reconstructed initial state is compared with the true one. Where more than half of the
    digits of y0's dtype are gone there is a warning, and the gradient is computed again by taking the steps forwards
    from a few checkpoints; it is exact then too, but for twice the time or more.
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
        digits = min(torch.finfo(d).eps for d in p.f.dtypes) ** 0.5
        if direct():
            return checked(p, solve_plain(p, request))

        def pull(taken: TapedSolve, cotangents: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
            undo = UndoBackwardPass(taken)
            grads = undo.run(cotangents)
            lost = undo.lost()
            if lost <= digits:
                return grads
            warn(
                f"gradient='reversible' could not undo the solve: the reconstructed y0 is off by {lost:.1e} (relative; "
                f"the limit is {digits:.1e}), as rounding errors grow by 1 / coupling a step and where the ODE is "
                "unstable backwards. The gradient was computed by taking the steps again, which is exact but slower. "
                "Use a coupling nearer to 1, fewer steps, float64, or gradient=Discrete(checkpoints=...)."
            )
            backward_pass = TapeBackwardPass(taken, Checkpoints.at_start(_SLOTS, taken.q, taken.entries))
            backward_pass.nfe = undo.nfe
            return backward_pass.run(cotangents)

        return checked(p, solve_with_tape(p, request, None, None, pull, replayed=False))


@torch.no_grad()
def checked(p: Problem, found: Trajectory) -> Trajectory:
    """The trajectory, with a warning where y and z, which both approximate the solution, have come apart.

    Their difference grows by about coupling * exp(h |a|) a step on a mode that decays at the rate a.
    """
    s = found.outcome.state
    if not s.carry:
        return found
    apart = tuple((a - b).detach() for a, b in zip(*halves(s.carry), strict=True))
    if p.controller.adaptive:
        scale = tolerance_scale(tuple(y.detach() for y in s.y), p.rtol, p.atol)
        size, limit = rms(tuple(a / b for a, b in zip(apart, scale, strict=True)), p.batched), _APART
    else:
        size = rms(apart, p.batched) / rms(tuple(y.detach() for y in s.y), p.batched).clamp(min=1e-300)
        limit = _APART_CONSTANT
    good = succeeded(p, s.status)
    size = size if good is None else torch.where(good, size, 0.0)
    worst = largest(torch.nan_to_num(size, nan=torch.inf, posinf=torch.inf))
    if worst > limit:
        unit = "tolerances" if p.controller.adaptive else "of its size"
        warn(
            f"gradient='reversible': the solution is not accurate. The two states of the reversible method are "
            f"{worst:.2g} {unit} apart (the limit is {limit:g}), as happens where the ODE contracts: on a mode that "
            "decays at the rate a it is stable only for steps below -log(coupling) / a. Use a smaller coupling, step "
            "or tolerance, or gradient=Discrete(checkpoints=...), whose memory is constant too."
        )
    return found


@final
class UndoBackwardPass(BackwardPass):
    """Undoes the steps from the last to the first; `y`, `z` are where it stands, and alone in their wider dtype."""

    def __init__(self, taken: TapedSolve) -> None:
        assert isinstance(taken.q.method, ReversibleMethod)
        self.method = taken.q.method
        super().__init__(taken, self.method.base)
        carry, taken.carry = taken.carry, None  # nobody else is to hold the end while this goes back
        carry = self._end() if carry is None else carry
        self.y, self.z = halves(carry)
        self.size = max_abs(self.y or self.q.y0, self.q.batched)  # a solve of no length has no carry
        self.others = RowScatter()

    @torch.no_grad()
    def _end(self) -> Leaves:
        """The carry at the end once more, for a second backward pass over the same solution."""
        y, carry = self.q.y0, self.method.init(self.q.f, self.q.ts[..., 0], self.q.y0)
        ends = RowScatter()
        for n, e in enumerate(self.entries):
            samples = e.problem.samples
            y, carry = ends.samples.take_from(y, samples), ends.exchange_leaves(carry, samples)
            y, carry = self.replay(n, (y, carry))
        return ends.exchange_leaves(carry, ALL)

    def enter(self, part: BatchSegment) -> None:
        n, found = len(self.y), self.others.exchange_leaves((*self.y, *self.z), part.q.samples)
        self.y, self.z = found[:n], found[n:]
        super().enter(part)

    def step_graph(self, n: int) -> StepGraph:
        """The carry is of its wider dtype in values and of the state's in what is differentiated."""
        (e, _), method = self.samples_of(n), self.method
        time0, time1 = leaf_ends(self.q, e, self.times_needed)
        f = e.field(self.q, time0, time1)
        ends_bar = self._other(e, f, time0, time1)
        # then y1 = l y + (1 - l) z + rise(z)
        z = new_leaves(to_float32(self.z, self.q.y0))
        rise, stages = method.base.increment(StepInput(f, time0, time1, z))
        y0 = method.parted(self.y, self.z, tuple(x.detach() for x in rise))
        self.y = select(e.accept, y0, self.y)
        y = new_leaves(to_float32(self.y, self.q.y0))
        joined = method.joined(y, z, rise)
        unused = new_leaves(tuple(x.new_zeros(()) for x in y))  # the y of the carry: it is y
        attempt = e.as_attempt(self.q, time0, time1, y, (*unused, *z), Step(joined, (), packed(z, rise, stages)))
        return StepGraph(attempt, (*joined, *z), ends_bar)

    def step_vjp(
        self, method: StagewiseMethod, n: int, y_bar: Cotangents, carry_bar: Cotangents
    ) -> tuple[Cotangents, Cotangents]:
        (e, _), own, like = self.samples_of(n), self.method, self.q.y0
        time0, time1 = e.end_times(self.q)
        field = e.field(self.q, time0, time1)
        wide_bar, z_bar = (carry_bar[: len(like)], carry_bar[len(like) :]) if carry_bar else ([None] * len(like),) * 2
        y_bar = add_counts(y_bar, wide_bar)
        # z1 = z - back(y1)
        f = EvaluationGraphs(field)
        back, _ = method.increment(StepInput(f, time1, time0, to_float32(self.y, like)))
        self.z = select(e.accept, tuple(z + b for z, b in zip(self.z, back, strict=True)), self.z)
        minus = [None if b is None else -b for b in z_bar]
        through = method.vjp_increment(expand_over(time0 - time1, like), f.stages, minus, self.vjp)
        y_bar = add_counts(y_bar, through)
        # y1 = l y + (1 - l) z + rise(z)
        f = EvaluationGraphs(field)
        rise, _ = method.increment(StepInput(f, time0, time1, to_float32(self.z, like)))
        self.y = select(e.accept, own.parted(self.y, self.z, rise), self.y)
        through = method.vjp_increment(expand_over(time1 - time0, like), f.stages, y_bar, self.vjp)
        kept, given = (
            [None if b is None else b * factor for b in y_bar] for factor in (own.coupling, 1.0 - own.coupling)
        )
        return kept, [*[None] * len(like), *add_counts(add_counts(z_bar, given), through)]

    def _other(self, e: TapeStep, f: Field, time0: Tensor, time1: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Undo z1 = z - back(y1), the part of the step that goes back from y1, and pull through it.

        Gives the cotangents of its ends.
        """
        method, n, z_bar = self.method, len(self.y), self.carry_bar[len(self.z) :]
        free = new_leaves(to_float32(self.y, self.q.y0))
        back, _ = method.base.increment(StepInput(f, time1, time0, free))
        z0 = tuple(c + b.detach() for b, c in zip(back, self.z, strict=True))
        self.z = select(e.accept, z0, self.z)
        if all(b is None for b in z_bar):
            return None, None
        through, _ = divided(e.accept, z_bar)
        ends = (time0, time1) if self.times_needed else ()
        grads = self.vjp(back, [None if b is None else -b for b in through], (*free, *ends))
        self.y_bar = add_counts(self.y_bar, grads[:n])
        return (grads[-2], grads[-1]) if self.times_needed else (None, None)

    def lost(self) -> float:
        """The largest difference between the reconstructed and the true initial state of a sample.

        Relative to the larger one of the initial and the last state: from a start of rounding errors alone, such as a
        reset to zero may leave, nothing can be lost.
        """
        q = self.q
        if not self.entries:
            return 0.0
        size = torch.maximum(max_abs(q.y0, q.batched), self.size)
        miss = [max_abs(tuple(x - y for x, y in zip(ys, q.y0, strict=True)), q.batched) for ys in (self.y, self.z)]
        worst = torch.maximum(*miss) / torch.where(size > 0, size, 1.0)
        return float(torch.nan_to_num(worst, nan=torch.inf, posinf=torch.inf).max())
