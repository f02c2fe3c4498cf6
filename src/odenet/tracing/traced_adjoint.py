"""The continuous adjoint inside a graph that the caller records: one loop forwards, and one per output backwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..core.dense import evaluate
from ..core.leaves import Leaves, dot, expand_over, expand_to
from ..core.pytrees import flatten, unflatten
from ..engine.problem import Problem
from ..engine.step_attempt import BatchAttempt
from ..gradients.adjoint import Adjoint
from ..gradients.quadrature import nodes_and_weights
from .traced_field import TracedField, clone_with_strides
from .while_loop import TracedEnd, traced_loop


class _AdjointSettings:
    """A solve whose differentiable tensors are separate inputs: those in args, then the parameters of a module f.

    arg_positions: indices of the differentiable tensors in args. parameter_names: names of the parameters.
    """

    def __init__(self, p: Problem, gradient: Adjoint, f: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.p, self.gradient, self.f = p, gradient, f
        self.args, self.spec = flatten(args)
        self.arg_positions = [i for i, x in enumerate(self.args) if getattr(x, "requires_grad", False)]
        self.parameter_names = (
            [k for k, x in f.named_parameters() if x.requires_grad] if isinstance(f, nn.Module) else []
        )

    def tensors(self) -> Leaves:
        named = dict(self.f.named_parameters()) if isinstance(self.f, nn.Module) else {}
        return (*(self.args[i] for i in self.arg_positions), *(named[k] for k in self.parameter_names))

    def field(self, tensors: Sequence[Tensor]) -> TracedField:
        """The field with `tensors` in place of the differentiable ones."""
        args = list(self.args)
        for i, x in zip(self.arg_positions, tensors, strict=False):
            args[i] = x
        new_args = tuple(unflatten(args, self.spec))
        f, params = self.f, dict(zip(self.parameter_names, tensors[len(self.arg_positions) :], strict=True))
        if params:
            module = cast(nn.Module, self.f)

            def f(t: Tensor, y: Any, *args: Any) -> Any:
                copies = {k: clone_with_strides(x) for k, x in params.items()}  # see `with_cloned_tensors`
                return torch.func.functional_call(module, copies, (t, y, *args))

        return cast(TracedField, self.p.f).with_function(f, new_args)


def solve_traced_adjoint(
    p: Problem, gradient: Adjoint, f: Callable[..., Any], args: tuple[Any, ...]
) -> tuple[Leaves, Leaves, TracedEnd]:
    """y1, ys and the end of the forward solve, differentiable by the continuous adjoint."""
    settings, n = _AdjointSettings(p, gradient, f, args), len(p.y0)
    tensors = settings.tensors()
    field = settings.field(tuple(x.detach() for x in tensors))
    slope = field(p.ts[0].detach(), tuple(y.detach() for y in p.y0))
    if any(k.requires_grad for k in slope):
        raise RuntimeError(
            "gradient='adjoint' inside torch.compile: f closes over tensors that require a gradient, which it cannot "
            "compute. Make f a torch.nn.Module that owns them, pass them to f through args, or use "
            "gradient='discrete'."
        )
    out = _Adjoint.apply(settings, *p.y0, p.ts, *tensors)
    return tuple(out[n : 2 * n]), tuple(out[:n]), TracedEnd(*out[2 * n :])


class _Adjoint(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, settings: _AdjointSettings, *inputs: Tensor) -> tuple[Tensor, ...]:
        p, n = settings.p, len(settings.p.y0)
        y0, ts, tensors = inputs[:n], inputs[n], inputs[n + 1 :]
        field: Any = settings.field(tensors)
        stops = p.stops.rule.stop_times(ts, p.direction)
        solution = traced_loop(replace(p, f=field, y0=y0, ts=ts, stops=stops), outputs=True, step_ends=False)
        y1, end = solution.end.nan_if_failed(solution.last.state.y), solution.end
        ctx.settings = settings
        ctx.save_for_backward(ts, *solution.ys, *tensors)
        ctx.mark_non_differentiable(*end)
        return (*solution.ys, *y1, *end)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        s: _AdjointSettings = ctx.settings
        n = len(s.p.y0)
        ts, *saved = ctx.saved_tensors
        ys, tensors = tuple(saved[:n]), tuple(saved[n:])
        return (None, *_backward(s, ts, ys, tensors, tuple(cotangents[:n]), tuple(cotangents[n : 2 * n])))


def _backward(
    s: _AdjointSettings, ts: Tensor, ys: Leaves, tensors: Leaves, ys_bar: Leaves, y1_bar: Leaves
) -> tuple[Tensor | None, ...]:
    """Cotangents of y0, ts and the tensors."""
    n, count = len(ys), ts.shape[0]
    field = s.field(tensors)
    a = y1_bar
    totals = tuple(torch.zeros_like(x) for x in tensors)
    ts_bar = [torch.zeros_like(ts[0])] * count
    for j in range(count - 1, 0, -1):
        y = tuple(x[j] for x in ys)
        bar = tuple(b[j] for b in ys_bar)
        output_bar = tuple(b + c for b, c in zip(bar, y1_bar, strict=True)) if j == count - 1 else bar
        ts_bar[j] = dot(output_bar, field(ts[j], y), False)
        a = tuple(x + b for x, b in zip(a, bar, strict=True))
        p = _backward_problem(s, torch.stack([ts[j], ts[j - 1]]), y, a, tensors)
        solution = traced_loop(p, outputs=False, step_ends=False, accumulate=_quadrature(s, p, tensors), sums=totals)
        a, totals = solution.end.nan_if_failed(solution.last.state.y[n:]), solution.sums
    first = tuple(x[0] for x in ys)
    ts_bar[0] = -dot(a, field(ts[0], first), False)
    a = tuple(x + b[0] for x, b in zip(a, ys_bar, strict=True))
    return (*a, torch.stack(ts_bar).to(ts.dtype), *totals)


class _AugmentedField(TracedField):
    """d/dt (y, a) = (f(t, y), -(df/dy)^T a)."""

    def __init__(self, field: TracedField, n: int) -> None:
        self.field, self.n = field, n
        self.dtypes = (*field.dtypes, *field.dtypes)

    def __call__(self, t: Tensor, state: Leaves, side: Tensor | None = None) -> Leaves:
        slope, vjp = cast(Any, torch.func.vjp(lambda *y: self.field(t, y, side), *state[: self.n]))
        return (*slope, *(-x for x in vjp(tuple(state[self.n :]))))


def _backward_problem(s: _AdjointSettings, ts: Tensor, y: Leaves, a: Leaves, tensors: Leaves) -> Problem:
    """The adjoint ODE between two output times, backwards."""
    method, controller = s.gradient.backward_solver(s.p)
    rtol, atol = s.gradient.tolerances(s.p, a, 2 * len(y))
    field: Any = _AugmentedField(s.field(tensors), len(y))
    limits: dict[str, Any] = {"rtol": rtol, "atol": atol, "max_steps": s.gradient.max_steps or s.p.max_steps}
    return replace(Problem.build(field, (*y, *a), ts, controller, method=method, **limits), traced=True)


def _quadrature(s: _AdjointSettings, p: Problem, tensors: Leaves) -> Callable[[BatchAttempt, Leaves], Leaves]:
    """A function that adds the integral of a^T df/dtheta over an accepted step.

    The sign is reversed, as time runs backwards.
    """
    n = len(p.y0) // 2
    nodes, weights = nodes_and_weights(p.method.order)

    def accumulate(attempt: BatchAttempt, totals: Leaves) -> Leaves:
        if not tensors:
            return totals
        length = attempt.time1 - attempt.time0
        polynomial = attempt.polynomial()
        for node, weight in zip(nodes, weights, strict=True):
            state = evaluate(attempt.y, polynomial, expand_over(torch.full_like(length, node), attempt.y))
            time = attempt.time0 + node * length
            _, vjp = cast(Any, torch.func.vjp(lambda *x, t=time, y=state: s.field(x)(t, y[:n]), *tensors))
            solution = vjp(tuple(state[n:]))
            totals = tuple(
                total + torch.where(attempt.accept, -weight * expand_to(length, g) * g, 0.0)
                for total, g in zip(totals, solution, strict=True)
            )
        return totals

    return accumulate
