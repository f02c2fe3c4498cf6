"""What the continuous adjoints share: settings, and the backward pass from output time to output time."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor

from ..control.controller import Controller
from ..core.capture import graph_marker
from ..core.leaves import Leaves, dot, expand_to, new_leaves, rows, select
from ..core.norms import Tolerance, max_abs
from ..core.scalars import MaskLike, where
from ..core.status import Status
from ..core.validate import describe, integer, number
from ..core.vector_field import VectorField
from ..engine.callbacks import Callbacks
from ..engine.dense_solution import Interpolation, evaluate_pieces
from ..engine.diagnose import raise_failure
from ..engine.integrate import NumericalSolution, Request, integrate
from ..engine.loop import Outcome
from ..engine.output_recorder import OutputRecorder
from ..engine.problem import Problem
from ..methods.method import Cotangents, Method
from .adjoint_field import AdjointField
from .attach import attach
from .gradient import Gradient, Stats, Trajectory, direct, refuse_random, solve_plain
from .quadrature import quadrature
from .step_graph import divided
from .taped_solve import once_more

_STEPS = 10_000


@dataclass(eq=False, repr=False)
class ContinuousAdjoint(Gradient):
    """A gradient that solves the adjoint ODE backwards; approximate, to the tolerances of that solve.

    rtol, atol: tolerances of the backward solve. By default those of the forward solve, atol in units of the largest
    entry of the cotangent (of each sample), so that the gradient of 0.001 times a loss is 0.001 times its gradient; an
    atol given here is absolute. method: of the backward solve (default: that of the forward solve). controller: its
    step control (default: that of the forward solve). max_steps: attempted steps between two output times (default: as
    in the forward solve, and at least 10,000, as that may be meant to go on later). norm: "seminorm" (the error control
    sees no parameters), or a callable on the leaves of the scaled error. callbacks: for the steps of the backward
    solve, with its leaves as the state.
    """

    rtol: float | None = None
    atol: float | None = None
    method: str | Method | None = None
    norm: Any = "seminorm"
    controller: Controller | None = None
    max_steps: int | None = None
    callbacks: Callbacks | None = None
    twice: bool = field(default=True, init=False)  # second derivatives, through the steps; else they are refused

    def __post_init__(self) -> None:
        if not (callable(self.norm) or (isinstance(self.norm, str) and self.norm == "seminorm")):
            raise ValueError(f"norm must be 'seminorm' or a callable; got {self.norm!r}")
        for name, given in (("rtol", self.rtol), ("atol", self.atol)):
            if given is None:
                continue
            setattr(self, name, number(f"{name} of the backward solve", given))
            if not 0.0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} of the backward solve must be zero or positive, and finite; got {given!r}")
        if self.max_steps is not None:
            integer("max_steps of the backward solve", self.max_steps, most=2**62)
        for name, kinds, what in (
            ("method", (str, Method), "a name or a Method"),
            ("controller", Controller, "a Controller"),
            ("callbacks", Callbacks, "a Callbacks"),
        ):
            if (given := getattr(self, name)) is not None and not isinstance(given, kinds):
                raise TypeError(f"{name} of the backward solve must be {what}; got {describe(given)}")

    def with_method(self, method: Method) -> ContinuousAdjoint:
        other = copy.copy(self)
        other.method = method
        return other

    def backward_solver(self, q: Problem) -> tuple[Method, Controller]:
        """Method and controller of the backward solve of q."""
        method = q.method if self.method is None else self.method
        controller = self.controller or q.controller
        assert isinstance(method, Method)  # solve has resolved the name
        if callable(self.norm):
            controller = copy.copy(controller)
            controller.norm = cast(Any, self.norm)
        return method.with_dense_output(
            "own"
        ), controller  # the quadrature runs along it, and lines would cost its order

    def tolerances(self, q: Problem, a: Leaves, count: int) -> tuple[Tolerance, Tolerance]:
        """Of the backward solve of q from the cotangents a: for each of its `count` leaves, y's (if any), then a's."""
        rtol = [*q.rtol] * (count // len(a)) if self.rtol is None else [self.rtol] * count
        if self.atol is not None:
            return rtol, [self.atol] * count
        top = max_abs(a, q.batched)  # the largest entry of a, of each lane; one where a is zero
        top = torch.where((top > 0) & torch.isfinite(top), top, 1.0)
        units = [float(top) if q.on_host else expand_to(top, x) for x in a]
        return rtol, [*q.atol[: count - len(a)], *(x * unit for x, unit in zip(q.atol, units, strict=True))]

    @abstractmethod
    def forwards(self, q: Problem, request: Request) -> tuple[NumericalSolution, Callable[[Leaves], AdjointSolve]]:
        """Solve, and say what takes the backward pass, given the captured tensors."""

    def run(self, p: Problem, request: Request) -> Trajectory:
        if direct():
            return solve_plain(p, request)
        q = p.detached()
        with torch.no_grad():
            solved, backward = self.forwards(q, request)
        made = _Attaching(self, p, q, replace(request, dense=False), solved, backward, *q.f.capture())
        values, m = made.attached(p.ts, solved.ys, solved.y1, p.f.save is not None), len(solved.ys)
        plainly = Interpolation.from_pieces(p, solved.pieces)
        # nothing that is attached keeps f alive
        dense = made.query if plainly is not None and made.asked(p.ts) else plainly
        return Trajectory(values[:m], values[m:], dense, solved.outcome, made.stats, plainly)


class _Attaching:
    """Makes states of a forward solve of p, of which q is a detached copy, functions of all inputs."""

    def __init__(
        self, how: ContinuousAdjoint, p: Problem, q: Problem, request: Request, solved: NumericalSolution,
        backward: Callable[[Leaves], AdjointSolve], used: Sequence[Tensor], spare: Sequence[Tensor],
    ) -> None:  # fmt: skip
        self.how, self.p, self.q, self.request, self.solved, self.backward = how, p, q, request, solved, backward
        self.used, self.spare, self.stats = used, spare, Stats.of(solved.outcome)

    def asked(self, ts: Tensor) -> bool:
        """Whether a gradient is asked for, with respect to ts or to anything else."""
        inputs = (*self.p.y0, ts, *self.p.f.differentiable_args, *self.used, *self.spare)
        return any(x.requires_grad for x in inputs)

    def attached(self, ts: Tensor, ys: Leaves, end: Leaves, saved: bool = False) -> Leaves:
        """ys at ts, and the state `end` at the time reached. saved: ys are what is saved of the states."""
        if not self.asked(ts):
            return (*ys, *end)
        refuse_random(self.p, self.q.f, replayed=False)
        versions = [y._version for y in ys]
        last = tuple(y.clone() for y in end)  # the caller's may be changed in place, as by ReLU(inplace=True)
        times, times_needed = ts.detach(), ts.requires_grad

        def pull(cotangents: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
            if versions != [y._version for y in ys]:
                raise RuntimeError(
                    f"the solution ys has been modified by an inplace operation, and gradient={self.how.name!r} starts "
                    "its backward solves from it: change a copy, ys.clone()"
                )
            made, states = self.backward((*self.used, *self.spare)), None if saved else ys
            grads = made.run(times, self.solved.outcome, states, last, cotangents, times_needed)
            self.stats["backward_nfe"] = made.nfe
            return grads

        inputs = (*self.p.y0, ts, *self.p.f.differentiable_args)
        return attach(pull, self.again if self.how.twice else None, (*ys, *end), inputs, self.used, self.spare)

    def again(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """The states from other inputs (y0, ts, args), in grad mode."""
        p, n = self.p, len(self.p.y0)
        stops = p.stops.rule.within(inputs[n], p.direction)
        return once_more(replace(p, stops=stops), self.request, (*inputs[: n + 1], stops.times, *inputs[n + 1 :]))

    def query(self, t: Tensor) -> Leaves:
        """The dense solution."""
        p, pieces = self.p, self.solved.pieces
        assert pieces is not None
        order = torch.argsort(t.detach() * p.direction.unsqueeze(-1), -1)
        ordered = torch.cat([p.ts[..., :1], t.gather(-1, order)], -1)
        ys = evaluate_pieces(pieces, ordered.detach(), p.direction, p.batched)
        ys = self.attached(ordered, ys, self.solved.y1)[: len(p.y0)]
        place: Any = torch.argsort(order, -1) + 1
        if p.batched:
            place = torch.arange(len(place), device=place.device).unsqueeze(-1), place
        return tuple(y[place] for y in ys)


class AdjointSolve:
    """One backward pass: from output time to output time, adding its cotangent at each."""

    def __init__(self, how: ContinuousAdjoint, q: Problem, field: AdjointField) -> None:
        self.how, self.q, self.field = how, q, field
        method, controller = how.backward_solver(q)
        self.options: dict[str, Any] = {
            "method": method, "controller": controller, "max_steps": how.max_steps or max(q.max_steps, _STEPS),
        }  # fmt: skip
        self.quadrature = quadrature(self.field, method, controller, q.batched)
        self.nfe: Any = torch.zeros_like(q.direction, dtype=torch.int64) if q.batched else 0

    def segments(self, start: Tensor) -> Iterator[Tensor]:
        """Lanes of times to stop at on the way back, to `start` at last; the next is asked for when one is reached."""
        yield start

    def run(
        self,
        ts: Tensor,
        outcome: Outcome,
        ys: Leaves | None,
        y1: Leaves,
        cotangents: Sequence[Tensor | None],
        times_needed: bool,
    ) -> Sequence[Tensor | None]:
        """Cotangents of y0, ts, and what f uses. ys: the states at ts; None: `save` keeps something else of them."""
        q, batched = self.q, self.q.batched
        n = len(cotangents) - len(q.y0)
        reached, status = outcome.state.time, outcome.state.status
        direction = q.direction.unsqueeze(-1)
        # times that a failed solve did not reach are left out: the adjoint starts where the solution ends
        beyond = (ts - reached.unsqueeze(-1)) * direction > 0
        self.asked: MaskLike = True
        if batched:  # a sample that nobody asks for has no backward solve: it stands at its start
            self.asked = asked = _asked(cotangents, ts)
            reached, y1 = torch.where(asked, reached, ts[:, 0]), select(asked, y1, q.y0)
            beyond = beyond | ~asked.unsqueeze(-1)
        self.ts, self.ts_bar, self.times_needed, axis = ts, torch.zeros_like(ts), times_needed, int(batched)
        self.ys = None if ys is None else tuple(y.movedim(axis, 0) for y in ys)
        self.ys_bar = [None if b is None else b.movedim(axis, 0) for b in cotangents[:n]]
        self.y, self.a, self.here, self.reached = y1, _filled(cotangents[n:], y1), reached, reached
        # without states at the outputs to start from, the state is solved for from the end on
        self.silent = all(b is None for b in (cotangents if ys is None else cotangents[n:]))
        with torch.no_grad():
            # y1 moves with the end of the solve where it succeeded, and not with an event that is there
            if times_needed:
                last, still = self._rate(self.a, True), beyond[..., -1] | (status == Status.EVENT)
                self.ts_bar[..., -1] += torch.where(still, torch.zeros_like(last), last)
            left = ~beyond
            for low in self.segments(ts[..., 0]):
                ahead = (ts - low.unsqueeze(-1)) * direction
                within = left & ((ahead > 0) | (ts == ts[..., :1]) & (ahead == 0))
                left = left & ~within
                for i in reversed(range(ts.shape[-1])):
                    if bool(within[..., i].any()):
                        self._output(i, within[:, i] if batched else True)
                self._go(where(self.asked, low, self.here))
        return (*self.a, self.ts_bar if times_needed else None, *self.quadrature.total())

    def _output(self, i: int, lanes: MaskLike) -> None:
        """Go back to output i and take its cotangent up."""
        self._go(where(lanes, self.ts[..., i], self.here))
        if self.ys is not None:
            self.y = select(lanes, tuple(x[i] for x in self.ys), self.y)
        if i == 0 and self.times_needed:
            self.ts_bar[..., 0] -= self._rate(self.a, lanes)
        if all(b is None for b in self.ys_bar):
            return
        self.silent = False
        given, _ = divided(lanes, [None if b is None else b[i] for b in self.ys_bar])
        bar = self._through_save(i, lanes, given) if self.ys is None else _filled(given, self.y)
        if i > 0 and self.times_needed:
            self.ts_bar[..., i] += self._rate(bar, lanes)
        self.a = tuple(x + b for x, b in zip(self.a, bar, strict=True))

    def _through_save(self, i: int, lanes: MaskLike, given: Cotangents) -> Leaves:
        """Cotangents of what is saved at output i -> of the state there; the others' are added up."""
        f, y = self.field.f, new_leaves(self.y)
        with torch.enable_grad():
            marker = graph_marker()
            t = self.here.detach().requires_grad_()
            kept = f.save_output(t, y)
            f.collect_captured(kept, t, y, marker)
            *found, by_t = self.field.pulled(kept, (*self.field.fixed, *y, t), given)
        if self.times_needed and by_t is not None:
            self.ts_bar[..., i] += by_t
        m = len(self.field.fixed)
        self.quadrature.add(found[:m])
        return _filled(divided(lanes, found[m:])[0], self.y)

    def _rate(self, a: Leaves, lanes: MaskLike) -> Tensor:
        """a^T f where the pass stands, zero for the other lanes."""
        rate = dot(a, self.field.f(self.here, self.y), self.q.batched)
        return where(lanes, rate, torch.zeros_like(rate))

    def _go(self, end: Tensor) -> None:
        """Solve the adjoint ODE from here back to `end`; before the first cotangent there is nothing to solve."""
        start, self.here = self.here, end
        if self.silent or bool((start == end).all()):
            return
        ts = torch.stack([start, end], -1)
        state = self.field.state(self.y, self.a)
        rtol, atol = self.how.tolerances(self.q, self.a, len(state))
        p = Problem.build(cast(VectorField, self.field), state, ts, rtol=rtol, atol=atol, **self.options)
        request = Request(callbacks=self.how.callbacks)
        solved = integrate(p, request, OutputRecorder(p), (self.quadrature,))
        raise_failure(p, solved.outcome, backward=self.how.name)
        self.nfe = self.nfe + solved.outcome.nfe
        self.y, self.a = self.field.pair(end, solved.y1)


def _asked(cotangents: Sequence[Tensor | None], ts: Tensor) -> Tensor:
    """The samples that have a cotangent, (B,); all of them where none has."""
    everyone = torch.ones_like(ts[:, 0], dtype=torch.bool)
    given = [rows(b != 0).any(1) for b in cotangents if b is not None]
    asked = torch.stack(given).any(0) if given else everyone
    return asked if bool(asked.any()) else everyone


def _filled(bars: Sequence[Tensor | None], like: Leaves) -> Leaves:
    return tuple(torch.zeros_like(x) if b is None else b for x, b in zip(like, bars, strict=True))
