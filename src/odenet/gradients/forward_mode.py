"""Forward-mode sensitivities: the Jacobian of the solution is carried along with it.

Each accepted step is recorded by autograd. Its products with the tangents come from differentiating its vector-Jacobian
product by the cotangent; that reaches tensors which f only closes over as well, where dual numbers would not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import final

import torch
from torch import Tensor

from ..core.capture import graph_marker
from ..core.error_notes import add_note
from ..core.leaves import Leaves, new_leaves
from ..core.scalars import MaskLike
from ..engine.dense_recorder import flat_piece
from ..engine.integrate import Request, integrate
from ..engine.observer import Observer
from ..engine.output_recorder import OutputBuffer, OutputRecorder, first_outputs, saved_outputs
from ..engine.problem import Problem
from ..engine.step_attempt import StepAttempt
from ..engine.tape import GraphStore, Tape, TapeStep
from .attach import attach
from .gradient import Gradient, Stats, Trajectory, direct, refuse_random, solve_plain
from .step_graph import attached_step
from .tangents import Directions
from .taped_solve import flat, once_more, unpacked

# flash attention has no second derivative
_TWICE = "gradient='forward' differentiates f twice: take another one, such as 'discrete'."


@final
class Forward(Gradient):
    """Exact for the numerical solution; for few inputs and many outputs.

    Carries one tangent of the state for every number in y0 (in a sample of it, with per_sample), ts, args and captured
    tensors that asks for a gradient. Memory constant in the steps, and a backward pass that evaluates nothing. f has to
    be twice differentiable by autograd.
    """

    name = "forward"

    def run(self, p: Problem, request: Request) -> Trajectory:
        if direct():
            return solve_plain(p, request)
        q = replace(p.detached(), compact=False)  # the tangents are those of all samples
        with torch.no_grad():
            record = OutputRecorder(q)
            tape = Tape(record, None, AllGraphs(), p.times_differentiable)
            carried = Sensitivities(q, p, tape, request.dense)
            solved = integrate(q, request, record, (tape, carried), tape.try_step)
            carried.begin()
        stats, n = Stats.of(solved.outcome), len(p.y0)
        inputs = (*p.y0, p.ts, p.stops.times, *p.f.differentiable_args)
        values = flat(solved)
        if carried.directions.count:
            refuse_random(p, q.f, replayed=True)
            directions, tangents = carried.directions, carried.tangents()

            def pull(cotangents: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
                bars, m = list(cotangents), len(solved.ys) + n
                if p.batched:  # pieces are (N, B, ...); samples come first here
                    bars[m:] = [None if b is None else b.transpose(0, 1) for b in bars[m:]]
                found = directions.gradients(tangents, bars)
                first = len(found) - len(carried.spare)
                used = [
                    x if id(leaf) in carried.touched else None
                    for leaf, x in zip(carried.spare, found[first:], strict=True)
                ]
                return [*found[:first], *used]

            again = partial(once_more, p, request, like=q.f)
            values = attach(pull, again, values, inputs, carried.used, carried.spare)
        return replace(unpacked(p, values, solved, stats), field=q.f)


@final
class AllGraphs(GraphStore):
    """Wants every step recorded, and keeps none."""

    def wants_graph(self, p: Problem) -> bool:
        return True

    def store(self, n: int, attempt: StepAttempt) -> None:
        pass


@final
class Sensitivities(Observer):
    """Carries tangents (P, ...) of y, the carry and the time along the accepted steps. Comes after the tape."""

    def __init__(self, q: Problem, p: Problem, tape: Tape, dense: bool) -> None:
        self.q, self.p, self.tape, self.dense = q, p, tape, dense
        self.times_needed = p.times_differentiable
        self.marker = graph_marker()
        self.begun = False
        self.touched: set[int] = set()  # ids of tensors that some step was found to use
        self.outputs = OutputBuffer()
        self.pieces: list[Leaves] = []

    def begin(self) -> None:
        """The tangents at ts[0]; once f has been evaluated, and so the tensors that it captures are known."""
        if self.begun:
            return
        self.begun, q, p, n = True, self.q, self.p, len(self.p.y0)
        with torch.enable_grad():
            ts = q.ts.detach().requires_grad_(self.times_needed)
            y = new_leaves(q.y0)
            rows, first, _ = first_outputs(q, ts, y)  # may be the first to evaluate f
        self.used, self.spare = q.f.capture()
        self.captured = (*self.used, *self.spare)
        self.fixed = (*q.f.differentiable_args, *self.captured)
        inputs = (*p.y0, p.ts, p.stops.times, *p.f.differentiable_args, *self.captured)
        self.directions = d = Directions(inputs, n, p.batched)
        self.y, self.ts, self.stops, self.fixed_seeds = d.seeds[:n], d.seeds[n], d.seeds[n + 1], d.seeds[n + 2 :]
        self.time = self.ts[..., 0]
        with torch.enable_grad():
            with q.f.with_random_states(q.f.initial_random_states):
                carry = q.method.init(q.f, ts[..., 0], y) if self.tape.steps else ()
            found = self._jvp((*first, *carry), (*y, ts), (*self.y, self.ts))
        self.outputs.append(rows, tuple(x.transpose(0, 1) for x in found[: len(first)]))
        self.carry = found[len(first) :]

    def observe(self, attempt: StepAttempt) -> None:
        if not self.tape.steps:
            return
        self.begin()
        e, q, n = self.tape.steps.pop(), self.q, len(self.y)
        calls, known = q.f.calls, attempt.known_polynomial
        with torch.enable_grad():
            attempt, carry1 = self._attached(e, attempt)
            times = q.ts.detach().requires_grad_(self.times_needed)
            given = e.outputs
            inner = () if given is None else saved_outputs(attempt, times[given.rows], given.sample)
            parts = flat_piece(attempt) if self.dense else ()
            time1 = self._end(e)
            found = self._jvp(
                (*attempt.step.y, *carry1, *inner, *parts),
                (*attempt.y, *attempt.carry, attempt.time0, attempt.time1, times),
                (*self.y, *self.carry, self.time, time1, self.ts),
            )
        if self.tape.graph_dropped:
            # the lanes that took the step are not charged for what those did that rejected it
            q.f.calls = calls + (0 if known else attempt.polynomial_calls)
        m = n + len(carry1)
        if given is not None:
            self.outputs.append(given.rows, tuple(x.transpose(0, 1) for x in found[m : m + len(inner)]))
        if self.dense:
            self.pieces.append(tuple(found[m + len(inner) :]))
        self.y = [_select(e.accept, a, b) for a, b in zip(found[:n], self.y, strict=True)]
        self.carry = [_select(e.accept, a, b) for a, b in zip(found[n:m], self.carry, strict=True)]
        self.time = _select(e.accept, time1, self.time)

    def _attached(self, e: TapeStep, attempt: StepAttempt) -> tuple[StepAttempt, Leaves]:
        """The move and the carry after it, attached to leaves; taken again where it was not recorded whole."""
        if attempt.graph is not None:
            return replace(attempt, step=attempt.graph), attempt.graph.carry
        local = attached_step(self.q, e, self.times_needed, attempt.y, attempt.carry)
        return local.attempt, local.carry1

    def _end(self, e: TapeStep) -> Tensor:
        """Tangent of the step's end: that of a stop where it hit one, else that of its start."""
        if self.q.on_host:
            if e.hit and e.stop < 0:  # the time of an event is a constant
                return torch.zeros_like(self.time)
            return self.stops[..., e.stop] if e.hit else self.time
        index = e.stop.clamp(min=0, max=self.stops.shape[-1] - 1)[None, :, None].expand(len(self.stops), -1, 1)
        there = torch.where(e.stop >= 0, self.stops.gather(-1, index)[..., 0], 0.0)
        return torch.where(e.hit, there, self.time)

    @add_note("derivative for", _TWICE)
    def _jvp(self, values: Leaves, inputs: Leaves, tangents: Sequence[Tensor]) -> list[Tensor]:
        """Tangents (P, ...) of `values`, from those of `inputs` and of what all steps share."""
        out = [v.new_zeros(self.directions.count, *v.shape) for v in values]
        live = [i for i, v in enumerate(values) if v.requires_grad]
        attached = tuple(values[i] for i in live)
        if self.q.f.captured is not None:
            self.q.f.captured.collect(attached, (*inputs, *self.fixed), self.marker)
        asked = [
            (x, t)
            for x, t in zip((*inputs, *self.fixed), (*tangents, *self.fixed_seeds), strict=True)
            if x.requires_grad
        ]
        if not live or not asked or not self.directions.count:
            return out
        bars = [torch.zeros_like(v, requires_grad=True) for v in attached]
        pulled = self.q.f.vjp(attached, [x for x, _ in asked], bars, create_graph=True)
        self.touched.update(id(x) for g, (x, _) in zip(pulled, asked, strict=True) if g is not None)
        pairs = [(g, t) for g, (_, t) in zip(pulled, asked, strict=True) if g is not None and g.requires_grad]
        if not pairs:
            return out
        # one direction after the other: is_grads_batched took five times as long for 35 directions of a small field
        for k in range(self.directions.count):
            found = torch.autograd.grad(
                [g for g, _ in pairs], bars, [t[k] for _, t in pairs], allow_unused=True, retain_graph=True
            )
            for i, x in zip(live, found, strict=True):
                if x is not None:
                    out[i][k] = x
        return out

    def tangents(self) -> list[Tensor]:
        """(P, ...) for each output: ys, y1, and the flat pieces with `dense`. Per sample (P, B, ...)."""
        axis = 1 + self.q.batched
        ys = [x.movedim(axis, 0) for x in self.outputs.assemble(self.q.ts, 0.0)]
        if not self.dense:
            return [*ys, *self.y]
        start = [self.time, self.time, *self.y, *(torch.zeros_like(x) for x in self.y)]
        parts = self.pieces or [tuple(start)]
        flat = [torch.stack(x, axis) for x in zip(*parts, strict=True)]
        return [*ys, *self.y, *flat]


def _select(accept: MaskLike, a: Tensor, b: Tensor) -> Tensor:
    """Lane by lane, where lanes are the second axis."""
    if accept is True:
        return a
    return torch.where(accept.view(-1, *(1,) * (a.ndim - 2)), a, b)
