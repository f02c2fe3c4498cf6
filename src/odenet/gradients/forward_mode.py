"""Forward-mode sensitivities: the Jacobian of the solution is integrated along with it.

Each accepted step is recorded by autograd. Its Jacobian-vector products come from differentiating its VJP by the
cotangent; unlike dual numbers, that also reaches captured tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import cast, final

import torch
from torch import Tensor

from ..core.capture import graph_marker
from ..core.leaves import Leaves, as_graph_inputs
from ..core.pytorch_error_notes import add_note
from ..core.scalars import MaskLike
from ..engine.advance import next_carry
from ..engine.dense_recorder import flat_piece
from ..engine.integrate import Request, integrate
from ..engine.observer import Observer
from ..engine.one_sided import initial_carry
from ..engine.output_recorder import OutputBuffer, OutputRecorder, first_outputs, saved_outputs
from ..engine.problem import Problem
from ..engine.step_attempt import StepAttempt
from ..engine.tape import GraphStore, Tape, TapeStep
from .custom_vjp import custom_vjp
from .gradient import Gradient, Stats, Trajectory, gradient_bypassed, refuse_random, solve_plain
from .step_graph import replay_from_leaves
from .tangents import Directions
from .taped_solve import flat_outputs, recompute_outputs, to_trajectory

# flash attention has no second derivative
_NO_SECOND_DERIVATIVE = "gradient='forward' differentiates f twice: use another gradient, such as 'discrete'."


@final
class Forward(Gradient):
    """Exact for the numerical solution; for few inputs and many outputs.

    Carries one tangent of the state for every number in y0 (in one sample of it, with per_sample), ts, args and
    captured tensors that requires a gradient. Memory is constant in the number of steps, and a backward pass evaluates
    nothing. f must be twice differentiable by autograd.
    """

    name = "forward"

    def run(self, p: Problem, request: Request) -> Trajectory:
        if gradient_bypassed():
            return solve_plain(p, request)
        q = replace(p.detached(), compact=False)  # tangents have rows for all samples
        with torch.no_grad():
            recorder = OutputRecorder(q)
            tape = Tape(recorder, None, AllGraphs(), p.times_differentiable)
            sensitivities = Sensitivities(q, p, tape, request.dense)
            solved = integrate(q, request, recorder, (tape, sensitivities), tape.try_step)
            sensitivities.start()
        stats, n = Stats.from_outcome(solved.outcome), len(p.y0)
        inputs = (*p.y0, p.ts, p.stops.times, *p.f.differentiable_args)
        values = flat_outputs(solved)
        if sensitivities.directions.count:
            refuse_random(p, q.f, replayed=True)
            directions, tangents = sensitivities.directions, sensitivities.tangents()

            def backward(cotangents: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
                output_bars, m = list(cotangents), len(solved.ys) + n
                if p.batched:  # pieces are (N, B, ...); tangents have the samples first
                    output_bars[m:] = [None if b is None else b.transpose(0, 1) for b in output_bars[m:]]
                grads = directions.gradients(tangents, output_bars)
                first = len(grads) - len(sensitivities.reachable)
                used = [
                    x if id(leaf) in sensitivities.used_ids else None
                    for leaf, x in zip(sensitivities.reachable, grads[first:], strict=True)
                ]
                return [*grads[:first], *used]

            recompute = partial(recompute_outputs, p, request, field=q.f)
            values = custom_vjp(backward, recompute, values, inputs, sensitivities.used, sensitivities.reachable)
        return replace(to_trajectory(p, values, solved, stats), field=q.f)


@final
class AllGraphs(GraphStore):
    """Records every step and stores none."""

    def wants_graph(self, p: Problem) -> bool:
        return True

    def store(self, n: int, attempt: StepAttempt) -> None:
        pass


@final
class Sensitivities(Observer):
    """Carries tangents (P, ...) of y, the carry and the time along the accepted steps. Observes after the tape."""

    def __init__(self, q: Problem, p: Problem, tape: Tape, dense: bool) -> None:
        self.q, self.p, self.tape, self.dense = q, p, tape, dense
        self.time_grads_needed = p.times_differentiable
        self.marker = graph_marker()
        self.started = False
        self.used_ids: set[int] = set()  # ids of tensors that some step used
        self.outputs = OutputBuffer()
        self.pieces: list[Leaves] = []

    def start(self) -> None:
        """Set the tangents at ts[0], once f has been evaluated and its captured tensors are known."""
        if self.started:
            return
        self.started, q, p, n = True, self.q, self.p, len(self.p.y0)
        with torch.enable_grad():
            ts = q.ts.detach().requires_grad_(self.time_grads_needed)
            y = as_graph_inputs(q.y0)
            rows, first, _ = first_outputs(q, ts, y)  # this may be the first evaluation of f
        self.used, self.reachable = q.f.capture()
        self.captured = (*self.used, *self.reachable)
        self.parameters = (*q.f.differentiable_args, *self.captured)
        inputs = (*p.y0, p.ts, p.stops.times, *p.f.differentiable_args, *self.captured)
        self.directions = d = Directions(inputs, n, p.batched)
        self.y, self.ts, self.stops, self.parameter_seeds = d.seeds[:n], d.seeds[n], d.seeds[n + 1], d.seeds[n + 2 :]
        self.time = self.ts[..., 0]
        with torch.enable_grad():
            with q.f.with_random_states(q.f.initial_random_states):
                carry = initial_carry(q, ts[..., 0], y) if self.tape.steps else ()
            tangents = self._jvp((*first, *carry), (*y, ts), (*self.y, self.ts))
        self.outputs.append(rows, tuple(x.transpose(0, 1) for x in tangents[: len(first)]))
        self.carry = tangents[len(first) :]

    def observe(self, attempt: StepAttempt) -> None:
        if not self.tape.steps:
            return
        self.start()
        step, q, n = self.tape.steps.pop(), self.q, len(self.y)
        calls, known = q.f.calls, attempt.known_polynomial
        with torch.enable_grad():
            attempt, carry1 = self._recorded_step(step, attempt)
            times = q.ts.detach().requires_grad_(self.time_grads_needed)
            outputs = step.outputs
            inner = () if outputs is None else saved_outputs(attempt, times[outputs.rows], outputs.sample)
            piece = flat_piece(attempt) if self.dense else ()
            time1 = self._end_tangent(step)
            tangents = self._jvp(
                (*attempt.step.y, *carry1, *inner, *piece),
                (*attempt.y, *attempt.carry, attempt.time0, attempt.time1, times),
                (*self.y, *self.carry, self.time, time1, self.ts),
            )
        if self.tape.graph_dropped:
            # samples that accepted the step do not count the replay that rejected samples caused
            q.f.calls = calls + (0 if known else attempt.polynomial_calls)
        m = n + len(carry1)
        if outputs is not None:
            self.outputs.append(outputs.rows, tuple(x.transpose(0, 1) for x in tangents[m : m + len(inner)]))
        if self.dense:
            self.pieces.append(tuple(tangents[m + len(inner) :]))
        self.y = [_select(step.accept, a, b) for a, b in zip(tangents[:n], self.y, strict=True)]
        self.carry = [_select(step.accept, a, b) for a, b in zip(tangents[n:m], self.carry, strict=True)]
        self.time = _select(step.accept, time1, self.time)

    def _recorded_step(self, step: TapeStep, attempt: StepAttempt) -> tuple[StepAttempt, Leaves]:
        """The step and the carry after it, attached to leaves; replayed if its graph is missing."""
        if attempt.graph is not None:
            carry1 = next_carry(self.q, attempt.time1, attempt.graph, step.jumps)
            return replace(attempt, step=attempt.graph), carry1
        graph = replay_from_leaves(self.q, step, self.time_grads_needed, attempt.y, attempt.carry)
        return graph.attempt, graph.carry1

    def _end_tangent(self, step: TapeStep) -> Tensor:
        """The tangent of the step's end: that of the stop time if the step hit one, else that of its start."""
        if self.q.on_host:
            if step.hit and step.stop < 0:  # an event time is a constant
                return torch.zeros_like(self.time)
            return self.stops[..., step.stop] if step.hit else self.time
        stop, hit = cast(Tensor, step.stop), cast(Tensor, step.hit)
        index = stop.clamp(min=0, max=self.stops.shape[-1] - 1)[None, :, None].expand(len(self.stops), -1, 1)
        stop_tangent = torch.where(stop >= 0, self.stops.gather(-1, index)[..., 0], 0.0)
        return torch.where(hit, stop_tangent, self.time)

    @add_note("derivative for", _NO_SECOND_DERIVATIVE)
    def _jvp(self, values: Leaves, inputs: Leaves, tangents: Sequence[Tensor]) -> list[Tensor]:
        """Tangents (P, ...) of `values`, from those of `inputs` and of the parameters."""
        out = [v.new_zeros(self.directions.count, *v.shape) for v in values]
        attached_index = [i for i, v in enumerate(values) if v.requires_grad]
        attached = tuple(values[i] for i in attached_index)
        if self.q.f.captured is not None:
            self.q.f.captured.collect(attached, (*inputs, *self.parameters), self.marker)
        seeded = [
            (x, t)
            for x, t in zip((*inputs, *self.parameters), (*tangents, *self.parameter_seeds), strict=True)
            if x.requires_grad
        ]
        if not attached_index or not seeded or not self.directions.count:
            return out
        zero_bars = [torch.zeros_like(v, requires_grad=True) for v in attached]
        grads = self.q.f.vjp(attached, [x for x, _ in seeded], zero_bars, create_graph=True)
        self.used_ids.update(id(x) for g, (x, _) in zip(grads, seeded, strict=True) if g is not None)
        pairs = [(g, t) for g, (_, t) in zip(grads, seeded, strict=True) if g is not None and g.requires_grad]
        if not pairs:
            return out
        # one direction at a time: is_grads_batched took five times as long for 35 directions of a small field
        for k in range(self.directions.count):
            products = torch.autograd.grad(
                [g for g, _ in pairs], zero_bars, [t[k] for _, t in pairs], allow_unused=True, retain_graph=True
            )
            for i, x in zip(attached_index, cast(Sequence[Tensor | None], products), strict=True):
                if x is not None:
                    out[i][k] = x
        return out

    def tangents(self) -> list[Tensor]:
        """Tangents (P, ...), or (P, B, ...), of each output: ys, y1 and, with dense=True, the flat pieces."""
        axis = 1 + self.q.batched
        ys = [x.movedim(axis, 0) for x in self.outputs.assemble(self.q.ts, 0.0)]
        if not self.dense:
            return [*ys, *self.y]
        start = [self.time, self.time, *self.y, *(torch.zeros_like(x) for x in self.y)]
        piece = self.pieces or [tuple(start)]
        flat = [torch.stack(x, axis) for x in zip(*piece, strict=True)]
        return [*ys, *self.y, *flat]


def _select(accept: MaskLike, a: Tensor, b: Tensor) -> Tensor:
    """`where` over the samples, which are the second axis."""
    if not isinstance(accept, Tensor):
        return a
    return torch.where(accept.view(-1, *(1,) * (a.ndim - 2)), a, b)
