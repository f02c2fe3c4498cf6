"""The continuous adjoint of the Neural ODE paper (Chen et al. 2018, algorithm 1): the state is solved again backwards.

The gradient of parameters and args is kept out of the ODE's state: it is the integral of a^T df/dtheta along the
backward solution, by Gauss-Legendre quadrature on each step's dense output. So error control sees (y, a) alone, which
is the seminorm of Kidger, Chen & Lyons 2021, and no memory is spent on a parameter state.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, cast, final

import torch
from torch import Tensor

from ..control.base import Controller
from ..core.dense import evaluate
from ..core.field import VectorField
from ..core.lanes import Flag
from ..core.leaves import Leaves, dot, select, spread
from ..core.norms import Tolerance
from ..core.status import Status
from ..engine.advance import Move
from ..engine.diagnose import raise_failure
from ..engine.drive import Driver
from ..engine.integrate import Request, integrate
from ..engine.observe import Observer
from ..engine.pieces import evaluate_pieces
from ..engine.problem import Problem
from ..engine.record import Record
from ..methods.base import Method
from .augment import AdjointField
from .backprop import plain
from .base import Gradient, Stats, Trajectory, add, attach

# Gauss-Legendre nodes and weights on [0, 1]; n of them integrate polynomials up to degree 2n - 1 exactly.
_GAUSS: dict[int, tuple[tuple[float, ...], tuple[float, ...]]] = {
    1: ((0.5,), (1.0,)),
    2: ((0.21132486540518713, 0.7886751345948129), (0.5, 0.5)),
    3: ((0.1127016653792583, 0.5, 0.8872983346207417), (0.2777777777777778, 0.4444444444444444, 0.2777777777777778)),
    4: (
        (0.06943184420297371, 0.33000947820757187, 0.6699905217924281, 0.9305681557970262),
        (0.17392742256872693, 0.32607257743127307, 0.32607257743127307, 0.17392742256872693),
    ),
}


class Quadrature(Observer):
    """Sums the integral of a^T df/dtheta over the accepted steps of a backward solve."""

    def __init__(self, field: AdjointField, order: int) -> None:
        self.field = field
        self.nodes, self.weights = _GAUSS[min(4, (order + 1) // 2)]
        self.total: list[Tensor | None] = [None] * len(field.fixed)

    def see(self, move: Move) -> None:
        if not self.field.fixed:
            return
        accept = move.accept
        if not (bool(accept.any()) if isinstance(accept, Tensor) else accept):
            return
        length = move.time1 - move.time0
        for node, weight in zip(self.nodes, self.weights, strict=True):
            theta = tuple(spread(torch.full_like(length, node), x) for x in move.y)
            state = evaluate(move.y, move.polynomial(), theta)
            n = len(state) // 2
            # the backward solve runs against time: its dt is negative, and the integral runs from t0 to t1
            weighted = tuple(a * spread(-weight * length, a) for a in state[n:])
            still = tuple(torch.zeros_like(a) for a in weighted)
            y, bar = select(accept, state[:n], move.y[:n]), select(accept, weighted, still)
            time = move.time0 + node * length
            time = torch.where(accept, time, move.time0) if isinstance(accept, Tensor) else time
            parts = self.field.towards_fixed(time, y, bar)
            self.total = [add(a, b) for a, b in zip(self.total, parts, strict=True)]


@final
class Adjoint(Gradient):
    """The continuous adjoint; memory does not grow with the number of steps.

    rtol, atol: tolerances of the backward solve (default: those of the forward solve). method: its method (default:
    that of the forward solve). controller: its step control (default: that of the forward solve). max_steps: attempted
    steps between two output times. norm: "seminorm" (the default: the error control sees the state and its cotangent,
    not the parameters), or a callable on the leaves of the scaled error of (y, a).
    The result is approximate, to these tolerances; it drifts where the ODE is unstable backwards.
    """

    name = "adjoint"

    def __init__(
        self,
        rtol: float | None = None,
        atol: float | None = None,
        method: str | Method | None = None,
        norm: Any = "seminorm",
        controller: Controller | None = None,
        max_steps: int | None = None,
    ) -> None:
        if not (norm == "seminorm" or callable(norm)):
            raise ValueError(f"norm must be 'seminorm' or a callable; got {norm!r}")
        self.rtol, self.atol, self.method, self.norm = rtol, atol, method, norm
        self.controller, self.max_steps = controller, max_steps

    def run(self, p: Problem, driver: Driver, request: Request) -> Trajectory:
        if not torch.is_grad_enabled():
            return plain(p, driver, request)
        q = p.detached()
        with torch.no_grad():
            solved = integrate(q, driver, request, Record(q))
        stats = Stats.of(solved.outcome)
        captured = tuple(q.f.captured.tensors.values()) if q.f.captured else ()
        reached = solved.outcome.state.time

        def attached(ts: Tensor, ys: Leaves, end: Leaves) -> tuple[Tensor, ...]:
            """ys at ts, and the state `end` at the time reached, as functions of all inputs."""
            inputs = (*p.y0, ts, *p.f.differentiable_args, *captured)
            if not any(x.requires_grad for x in inputs):
                return (*ys, *end)

            versions = [y._version for y in ys]
            last = tuple(y.clone() for y in end)  # the caller's may be changed in place, as by ReLU(inplace=True)

            def pull(cotangents: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
                if versions != [y._version for y in ys]:
                    raise RuntimeError(
                        "the solution ys has been modified by an inplace operation, and gradient='adjoint' starts its "
                        "backward solves from it: change a copy, ys.clone()"
                    )
                status = solved.outcome.state.status
                solved_lanes = status == Status.SUCCESS if isinstance(status, Tensor) else True
                return Backward(self, q, driver, captured, stats, solved_lanes).run(
                    ts.detach(), reached, ys, last, cotangents, ts.requires_grad
                )

            return attach(pull, self.name, (*ys, *end), inputs)

        values = attached(p.ts, solved.ys, solved.y1)
        n = len(p.y0)
        pieces = solved.pieces

        def query(t: Tensor) -> Leaves:
            assert pieces is not None
            order = torch.argsort(t.detach() * (p.direction[:, None] if p.batched else p.direction), -1)
            ordered = torch.cat([p.ts[..., :1], t.gather(-1, order)], -1)
            ys = evaluate_pieces(pieces, ordered.detach(), p.direction, p.batched)
            ys = attached(ordered, ys, solved.y1)[:n]
            back = torch.argsort(order, -1) + 1
            if not p.batched:
                return tuple(y[back] for y in ys)
            return tuple(y[torch.arange(len(y), device=y.device)[:, None], back] for y in ys)

        query_or_none = query if pieces is not None else None
        return Trajectory(tuple(values[:n]), tuple(values[n:]), query_or_none, solved.outcome, stats)


class Backward:
    """One backward pass: from output time to output time, adding its cotangent at each."""

    def __init__(self, how: Adjoint, q: Problem, driver: Driver, captured: Leaves, stats: Stats, solved: Flag) -> None:
        self.q, self.driver, self.stats, self.solved = q, driver, stats, solved
        self.args = tuple(x.detach().requires_grad_() for x in q.f.differentiable_args)
        self.field = AdjointField(q.f, self.args, captured)
        method = q.method if how.method is None else how.method
        assert isinstance(method, Method)  # solve has resolved the name
        controller = how.controller or q.controller
        if callable(how.norm):
            controller = _with_norm(controller, how.norm)
        twice = [*range(len(q.y0))] * 2
        rtol: Tolerance = [q.rtol[i] if how.rtol is None else how.rtol for i in twice]
        atol: Tolerance = [q.atol[i] if how.atol is None else how.atol for i in twice]
        self.options: dict[str, Any] = {
            "method": method, "controller": controller, "rtol": rtol, "atol": atol,
            "max_steps": how.max_steps or q.max_steps,
        }  # fmt: skip
        self.quadrature = Quadrature(self.field, method.order)
        self.nfe = stats["nfe"] * 0

    def run(
        self,
        ts: Tensor,
        reached: Tensor,
        ys: Leaves,
        y1: Leaves,
        cotangents: Sequence[Tensor | None],
        times_needed: bool,
    ) -> Sequence[Tensor | None]:
        q, n, batched = self.q, len(self.q.y0), self.q.batched
        direction = q.direction[:, None] if batched else q.direction
        end = reached[:, None] if batched else reached
        # times that a failed solve did not reach are left out: the adjoint starts where the solution ends
        beyond = (ts - end) * direction > 0
        times = torch.where(beyond, end, ts)
        if isinstance(self.solved, Tensor):  # a sample that failed has no backward solve, and a gradient of zero
            times = torch.where(self.solved[:, None], times, end)
        ts_bar = torch.zeros_like(ts)
        ys_bar, end_bar = cotangents[:n], cotangents[n:]
        a = tuple(torch.zeros_like(y) if b is None else b for y, b in zip(y1, end_bar, strict=True))
        here, y = reached, y1
        if times_needed:  # y1 moves with the end of the solve where it succeeded
            last = dot(a, self.field.f(here, y), batched)
            ts_bar[..., -1] += torch.where(beyond[..., -1], torch.zeros_like(last), last)
        with torch.no_grad():
            for i in range(ts.shape[-1] - 1, -1, -1):
                y, a = self._interval(here, times[..., i], y, a)
                here = times[..., i]
                at = tuple(x[:, i] if batched else x[i] for x in ys)
                out = beyond[..., i] if batched else bool(beyond[i])
                y = select(out, y, at)
                if all(b is None for b in ys_bar):
                    continue
                bar = tuple(
                    torch.zeros_like(x) if b is None else (b[:, i] if batched else b[i])
                    for x, b in zip(y, ys_bar, strict=True)
                )
                bar = select(out, tuple(torch.zeros_like(b) for b in bar), bar)
                if times_needed and i > 0:
                    ts_bar[..., i] += dot(bar, self.field.f(here, y), batched)
                if times_needed and i == 0:
                    ts_bar[..., 0] -= dot(a, self.field.f(here, y), batched)
                a = tuple(x + b for x, b in zip(a, bar, strict=True))
            if times_needed and all(b is None for b in ys_bar):
                ts_bar[..., 0] -= dot(a, self.field.f(here, y), batched)
        a = select(self.solved, a, tuple(torch.zeros_like(x) for x in a))
        self.stats["backward_nfe"] = self.nfe
        return (*a, ts_bar if times_needed else None, *self.quadrature.total)

    def _interval(self, start: Tensor, end: Tensor, y: Leaves, a: Leaves) -> tuple[Leaves, Leaves]:
        if bool((start == end).all()):
            return y, a
        ts = torch.stack([start, end], -1)
        p = Problem.build(cast(VectorField, self.field), (*y, *a), ts, **self.options)  # it calls and counts like one
        record = Record(p)
        solved = integrate(p, self.driver, Request(), record, (self.quadrature,))
        outcome = solved.outcome
        raise_failure(p, outcome, backward=True)
        self.nfe = self.nfe + outcome.nfe
        n = len(y)
        return solved.y1[:n], solved.y1[n:]


def _with_norm(controller: Controller, norm: Any) -> Controller:
    other = copy.copy(controller)
    other.norm = norm
    return other
