"""Base class of the continuous adjoints: settings, and a backward pass from output time to output time."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from ..control.controller import Controller
from ..core.capture import graph_marker
from ..core.leaves import Leaves, as_graph_inputs, dot, expand_to, flatten_samples, select
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
from .custom_vjp import custom_vjp
from .gradient import Gradient, Stats, Trajectory, gradient_bypassed, refuse_random, solve_plain
from .quadrature import parameter_integral
from .step_graph import split_by_acceptance
from .taped_solve import recompute_outputs

_STEPS = 10_000


@dataclass(eq=False, repr=False)
class ContinuousAdjoint(Gradient):
    """A gradient that solves the adjoint ODE backwards; approximate, to the tolerances of that solve.

    rtol, atol: tolerances of the backward solve; default: those of the forward solve. The default atol is in units of
        the largest entry of the cotangent (of each sample), so 0.001 times a loss gives 0.001 times its gradient; an
        atol given here is absolute.
    method, controller: of the backward solve; default: those of the forward solve.
    max_steps: attempted steps between two output times; default: that of the forward solve, and at least 10,000, as a
        forward solve with a small limit may be continued later.
    norm: "seminorm": RMS of (y, a), as the gradient of parameters is no part of the backward state; or a callable as
        `Controller.norm`, on the leaves of the scaled error.
    callbacks: called in the steps of the backward solve, with its leaves as the state.
    """

    exact: ClassVar[bool] = False
    rtol: float | None = None
    atol: float | None = None
    method: str | Method | None = None
    norm: Any = "seminorm"
    controller: Controller | None = None
    max_steps: int | None = None
    callbacks: Callbacks | None = None
    double_backward: bool = field(default=True, init=False)  # False: second derivatives raise

    def __post_init__(self) -> None:
        if not (callable(self.norm) or (isinstance(self.norm, str) and self.norm == "seminorm")):
            raise ValueError(f"norm must be 'seminorm' or a callable; got {self.norm!r}")
        for name, value in (("rtol", self.rtol), ("atol", self.atol)):
            if value is None:
                continue
            setattr(self, name, number(f"{name} of the backward solve", value))
            if not 0.0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} of the backward solve must be zero or positive, and finite; got {value!r}")
        if self.max_steps is not None:
            integer("max_steps of the backward solve", self.max_steps, maximum=2**62)
        for name, kinds, what in (
            ("method", (str, Method), "a name or a Method"),
            ("controller", Controller, "a Controller"),
            ("callbacks", Callbacks, "a Callbacks"),
        ):
            if (value := getattr(self, name)) is not None and not isinstance(value, kinds):
                raise TypeError(f"{name} of the backward solve must be {what}; got {describe(value)}")

    def with_method(self, method: Method) -> ContinuousAdjoint:
        copied = copy.copy(self)
        copied.method = method
        return copied

    def backward_solver(self, q: Problem) -> tuple[Method, Controller]:
        """Method and controller of the backward solve for the forward problem q."""
        method = q.method if self.method is None else self.method
        controller = self.controller or q.controller
        assert isinstance(method, Method)  # solve() replaces names by methods
        if callable(self.norm):
            controller = copy.copy(controller)
            controller.norm = cast(Any, self.norm)
        return method.with_dense_output(
            "own"
        ), controller  # quadrature uses the dense output; linear interpolation would cost its order

    def tolerances(self, q: Problem, a: Leaves, count: int) -> tuple[Tolerance, Tolerance]:
        """rtol and atol of a backward solve from the cotangents a.

        One for each of its `count` leaves: those of y, if y is solved again, then those of a.
        """
        rtol = [*q.rtol] * (count // len(a)) if self.rtol is None else [self.rtol] * count
        if self.atol is not None:
            return rtol, [self.atol] * count
        largest = max_abs(a, q.batched)  # largest entry of a, per sample; 1 where a is zero
        largest = torch.where((largest > 0) & torch.isfinite(largest), largest, 1.0)
        scales = [float(largest) if q.on_host else expand_to(largest, x) for x in a]
        return rtol, [*q.atol[: count - len(a)], *(x * scale for x, scale in zip(q.atol, scales, strict=True))]

    @abstractmethod
    def solve_forward(self, q: Problem, request: Request) -> tuple[NumericalSolution, Callable[[Leaves], AdjointSolve]]:
        """Solve q; returns the solution, and a function of the captured tensors that gives the backward pass."""

    def run(self, p: Problem, request: Request) -> Trajectory:
        if gradient_bypassed():
            return solve_plain(p, request)
        q = p.detached()
        with torch.no_grad():
            solved, backward = self.solve_forward(q, request)
        outputs = _DifferentiableOutputs(self, p, q, replace(request, dense=False), solved, backward, *q.f.capture())
        values, m = outputs.attach(p.ts, solved.ys, solved.y1, p.f.save is not None), len(solved.ys)
        dense_values = Interpolation.from_pieces(p, solved.pieces)
        # without a gradient, sol(t) does not keep f alive
        dense = outputs.dense if dense_values is not None and outputs.grad_needed(p.ts) else dense_values
        return Trajectory(values[:m], values[m:], dense, solved.outcome, outputs.stats, dense_values)


class _DifferentiableOutputs:
    """Attaches states of a forward solve of p, computed from the detached copy q, to all inputs."""

    def __init__(
        self, settings: ContinuousAdjoint, p: Problem, q: Problem, request: Request, solved: NumericalSolution,
        backward: Callable[[Leaves], AdjointSolve], used: Sequence[Tensor], reachable: Sequence[Tensor],
    ) -> None:  # fmt: skip
        self.settings, self.request, self.solved, self.backward = settings, request, solved, backward
        self.p, self.q = p, q
        self.used, self.reachable, self.stats = used, reachable, Stats.from_outcome(solved.outcome)

    def grad_needed(self, ts: Tensor) -> bool:
        """True if ts or any other input requires a gradient."""
        inputs = (*self.p.y0, ts, *self.p.f.differentiable_args, *self.used, *self.reachable)
        return any(x.requires_grad for x in inputs)

    def attach(self, ts: Tensor, ys: Leaves, end: Leaves, saved: bool = False) -> Leaves:
        """Attach ys at ts, and the final state `end`. saved: ys are outputs of `save` instead of states."""
        if not self.grad_needed(ts):
            return (*ys, *end)
        refuse_random(self.p, self.q.f, replayed=False)
        versions = [y._version for y in ys]
        last = tuple(y.clone() for y in end)  # the caller may change it in place, as ReLU(inplace=True) does
        times, time_grads_needed = ts.detach(), ts.requires_grad

        def backward(cotangents: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
            if versions != [y._version for y in ys]:
                raise RuntimeError(
                    f"the solution ys has been modified by an inplace operation, and "
                    f"gradient={self.settings.name!r} starts its backward solves from it: change a copy, ys.clone()"
                )
            adjoint, states = self.backward((*self.used, *self.reachable)), None if saved else ys
            grads = adjoint.run(times, self.solved.outcome, states, last, cotangents, time_grads_needed)
            self.stats["backward_nfe"] = adjoint.nfe
            return grads

        inputs = (*self.p.y0, ts, *self.p.f.differentiable_args)
        return custom_vjp(
            backward,
            self.recompute if self.settings.double_backward else None,
            (*ys, *end),
            inputs,
            self.used,
            self.reachable,
        )

    def recompute(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """The states from new inputs (y0, ts, args), in grad mode."""
        p, n = self.p, len(self.p.y0)
        stops = p.stops.rule.stop_times(inputs[n], p.direction)
        return recompute_outputs(
            replace(p, stops=stops), self.request, (*inputs[: n + 1], stops.times, *inputs[n + 1 :])
        )

    def dense(self, t: Tensor) -> Leaves:
        """The dense solution at times t, (m,) or (B, m), differentiable."""
        p, pieces = self.p, self.solved.pieces
        assert pieces is not None
        order = torch.argsort(t.detach() * p.direction.unsqueeze(-1), -1)
        ordered = torch.cat([p.ts[..., :1], t.gather(-1, order)], -1)
        ys = evaluate_pieces(pieces, ordered.detach(), p.direction, p.batched)
        ys = self.attach(ordered, ys, self.solved.y1)[: len(p.y0)]
        position: Any = torch.argsort(order, -1) + 1
        if p.batched:
            position = torch.arange(len(position), device=position.device).unsqueeze(-1), position
        return tuple(y[position] for y in ys)


class AdjointSolve:
    """One backward pass: solves from output time to output time and adds the cotangent of each output."""

    def __init__(self, settings: ContinuousAdjoint, q: Problem, field: AdjointField) -> None:
        self.settings, self.forward_problem, self.field = settings, q, field
        method, controller = settings.backward_solver(q)
        self.options: dict[str, Any] = {
            "method": method, "controller": controller, "max_steps": settings.max_steps or max(q.max_steps, _STEPS),
        }  # fmt: skip
        self.integral = parameter_integral(self.field, method, controller, q.batched)
        self.nfe: Any = torch.zeros_like(q.direction, dtype=torch.int64) if q.batched else 0

    def segments(self, start: Tensor) -> Iterator[Tensor]:
        """Times to stop at on the way back, one per sample and the last one `start`.

        The next one is requested when the previous one is reached.
        """
        yield start

    def run(
        self,
        ts: Tensor,
        outcome: Outcome,
        ys: Leaves | None,
        y1: Leaves,
        cotangents: Sequence[Tensor | None],
        time_grads_needed: bool,
    ) -> Sequence[Tensor | None]:
        """Cotangents of y0, ts and parameters. ys: the states at ts; None if `save` returns something else."""
        q, batched = self.forward_problem, self.forward_problem.batched
        n = len(cotangents) - len(q.y0)
        reached, status = outcome.state.time, outcome.state.status
        direction = q.direction.unsqueeze(-1)
        # skip times that a failed solve did not reach: the adjoint starts at the end of the solution
        unreached = (ts - reached.unsqueeze(-1)) * direction > 0
        self.needed: MaskLike = True
        if batched:  # a sample without cotangents has no backward solve: it starts at its initial time
            self.needed = needed = _samples_with_cotangents(cotangents, ts)
            reached, y1 = torch.where(needed, reached, ts[:, 0]), select(needed, y1, q.y0)
            unreached = unreached | ~needed.unsqueeze(-1)
        self.ts, self.ts_bar, self.time_grads_needed, axis = ts, torch.zeros_like(ts), time_grads_needed, int(batched)
        self.ys = None if ys is None else tuple(y.movedim(axis, 0) for y in ys)
        self.ys_bar = [None if b is None else b.movedim(axis, 0) for b in cotangents[:n]]
        self.y, self.a, self.time, self.end_time = y1, _zeros_for_none(cotangents[n:], y1), reached, reached
        # without states at the outputs, the state is solved from the end
        self.all_zero = all(b is None for b in (cotangents if ys is None else cotangents[n:]))
        with torch.no_grad():
            # y1 depends on the last time of a successful solve, but not of one that an event ended
            if time_grads_needed:
                last, end_fixed = self._time_bar(self.a, True), unreached[..., -1] | (status == Status.EVENT)
                self.ts_bar[..., -1] += torch.where(end_fixed, torch.zeros_like(last), last)
            remaining = ~unreached
            for segment_start in self.segments(ts[..., 0]):
                ahead = (ts - segment_start.unsqueeze(-1)) * direction
                within = remaining & ((ahead > 0) | (ts == ts[..., :1]) & (ahead == 0))
                remaining = remaining & ~within
                for i in reversed(range(ts.shape[-1])):
                    if bool(within[..., i].any()):
                        self._add_output(i, within[:, i] if batched else True)
                self._solve_to(where(self.needed, segment_start, self.time))
        return (*self.a, self.ts_bar if time_grads_needed else None, *self.integral.total())

    def _add_output(self, i: int, samples: MaskLike) -> None:
        """Solve back to output i and add its cotangent."""
        self._solve_to(where(samples, self.ts[..., i], self.time))
        if self.ys is not None:
            self.y = select(samples, tuple(x[i] for x in self.ys), self.y)
        if i == 0 and self.time_grads_needed:
            self.ts_bar[..., 0] -= self._time_bar(self.a, samples, after=True)
        if all(b is None for b in self.ys_bar):
            return
        self.all_zero = False
        cotangents, _ = split_by_acceptance(samples, [None if b is None else b[i] for b in self.ys_bar])
        bar = self._save_vjp(i, samples, cotangents) if self.ys is None else _zeros_for_none(cotangents, self.y)
        if i > 0 and self.time_grads_needed:
            self.ts_bar[..., i] += self._time_bar(bar, samples)
        self.a = tuple(x + b for x, b in zip(self.a, bar, strict=True))

    def _save_vjp(self, i: int, samples: MaskLike, cotangents: Cotangents) -> Leaves:
        """Cotangents of the saved output i -> of the state; those of parameters and time are added."""
        f, y = self.field.f, as_graph_inputs(self.y)
        with torch.enable_grad():
            marker = graph_marker()
            t = self.time.detach().requires_grad_()
            saved = f.save_output(t, y)
            f.collect_captured(saved, t, y, marker)
            *grads, t_bar = self.field.vjp(saved, (*self.field.parameters, *y, t), cotangents)
        if self.time_grads_needed and t_bar is not None:
            self.ts_bar[..., i] += t_bar
        m = len(self.field.parameters)
        self.integral.add(grads[:m])
        return _zeros_for_none(split_by_acceptance(samples, grads[m:])[0], self.y)

    def _time_bar(self, a: Leaves, samples: MaskLike, after: bool = False) -> Tensor:
        """a^T f at the current time and state; zero for samples outside the mask. Just before a jump, or just after."""
        q = self.forward_problem
        side = None if q.stops.jumps is None else (1 if after else -1) * q.direction * q.stops.jump_at(self.time)
        rate = dot(a, self.field.f(self.time, self.y, side), q.batched)
        return where(samples, rate, torch.zeros_like(rate))

    def _solve_to(self, end: Tensor) -> None:
        """Solve the adjoint ODE back to `end`; while all cotangents are zero only the time changes."""
        start, self.time = self.time, end
        if self.all_zero or bool((start == end).all()):
            return
        ts = torch.stack([start, end], -1)
        state = self.field.join_state(self.y, self.a)
        rtol, atol = self.settings.tolerances(self.forward_problem, self.a, len(state))
        p = Problem.build(cast(VectorField, self.field), state, ts, rtol=rtol, atol=atol, **self.options)
        request = Request(callbacks=self.settings.callbacks)
        solved = integrate(p, request, OutputRecorder(p), (self.integral,))
        raise_failure(p, solved.outcome, backward=self.settings.name)
        self.nfe = self.nfe + solved.outcome.nfe
        self.y, self.a = self.field.split_state(end, solved.y1)


def _samples_with_cotangents(cotangents: Sequence[Tensor | None], ts: Tensor) -> Tensor:
    """Mask (B,) of samples with a nonzero cotangent; all samples if there is none."""
    all_samples = torch.ones_like(ts[:, 0], dtype=torch.bool)
    nonzero = [flatten_samples(b != 0).any(1) for b in cotangents if b is not None]
    needed = torch.stack(nonzero).any(0) if nonzero else all_samples
    return needed if bool(needed.any()) else all_samples


def _zeros_for_none(cotangents: Sequence[Tensor | None], like: Leaves) -> Leaves:
    return tuple(torch.zeros_like(x) if b is None else b for x, b in zip(like, cotangents, strict=True))
