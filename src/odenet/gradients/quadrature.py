"""Gauss-Legendre quadrature along a backward solve: the gradient of parameters, kept out of the ODE's state."""

from __future__ import annotations

from typing import cast, final

import torch

from ..control.controller import Controller
from ..control.stop_times import StopRule
from ..core.dense import evaluate
from ..core.leaves import expand_to, select
from ..core.scalars import any_true, where
from ..engine.batch_index import ALL
from ..engine.observer import Observer
from ..engine.step_attempt import StepAttempt
from ..methods.explicit import ExplicitRK
from ..methods.method import Cotangents, Method
from .adjoint_field import AdjointField
from .batch_segments import ParameterGrads

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


def nodes_and_weights(order: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """What goes with a solve of this order."""
    return _GAUSS[min(4, (order + 1) // 2)]


def parameter_integral(field: AdjointField, method: Method, controller: Controller, batched: bool) -> ParameterIntegral:
    """The cheaper of both where the stages are there to be used: no step is tried in vain, none is carried over."""
    rule = StopRule.of(controller)
    plain = rule.jump_ts is None and not rule.perturb  # f where a jump is seen is evaluated anew
    if isinstance(method, ExplicitRK) and not (method.tableau.fsal or controller.adaptive or batched) and plain:
        return StageSum(field, method)
    return Quadrature(field, method.order)


class ParameterIntegral(Observer):
    """Sums the integral of a^T df/dtheta over the accepted steps of a backward solve."""

    def __init__(self, field: AdjointField) -> None:
        self.field, self.parameter_grads = field, ParameterGrads(len(field.parameters))

    def total(self) -> Cotangents:
        """For each of the field's fixed tensors."""
        self.parameter_grads.switch_to(self.field.f, ALL)
        return self.parameter_grads.total

    def add(self, parts: Cotangents) -> None:
        """Cotangents that belong to no step."""
        self.parameter_grads.switch_to(self.field.f, ALL)
        self.parameter_grads.add(parts)


@final
class StageSum(ParameterIntegral):
    """The integral of a^T df/dtheta by the weights of the method itself, from the stages of its steps.

    As if the integral were part of the ODE's state, but for the memory: one more product with each of the evaluations
    that are made anyway, where `Quadrature` makes its own.
    """

    def __init__(self, field: AdjointField, method: ExplicitRK) -> None:
        super().__init__(field)
        self.weights = method.tableau.b
        field.collected_vjps = [] if field.parameters else None

    def observe(self, attempt: StepAttempt) -> None:
        parts, totals = self.field.collected_vjps, self.parameter_grads.total
        if parts is None:
            return
        self.field.collected_vjps = []
        if not attempt.accept:
            return
        for weight, part in zip(self.weights, parts, strict=True):
            live = [(j, g) for j, g in enumerate(part) if g is not None]
            sums = []
            for j, g in live:
                total = totals[j]
                if total is None:
                    total = totals[j] = torch.zeros_like(g)
                sums.append(total)
            if sums and weight != 0.0:  # the backward solve runs against time
                grads = [g for _, g in live]
                torch._foreach_add_(sums, grads, alpha=weight * (attempt.t0 - attempt.t1))  # pyright: ignore[reportPrivateImportUsage]


@final
class Quadrature(ParameterIntegral):
    """The integral by evaluations of its own, on each step's dense output."""

    def __init__(self, field: AdjointField, order: int) -> None:
        super().__init__(field)
        self.nodes, self.weights = nodes_and_weights(order)

    def observe(self, attempt: StepAttempt) -> None:
        if not self.field.parameters:
            return
        field = cast(AdjointField, attempt.problem.f)
        self.parameter_grads.switch_to(field.f, attempt.problem.samples)
        accept = attempt.accept
        if not any_true(accept):
            return
        length = attempt.time1 - attempt.time0
        for node, weight in zip(self.nodes, self.weights, strict=True):
            theta = tuple(expand_to(torch.full_like(length, node), x) for x in attempt.y)
            state = select(accept, evaluate(attempt.y, attempt.polynomial(), theta), attempt.y)
            time = where(accept, attempt.time0 + node * length, attempt.time0)
            y, a = field.split_state(time, state)
            # the backward solve runs against time: its dt is negative, and the integral runs from t0 to t1
            weighted = tuple(x * expand_to(-weight * length, x) for x in a)
            weighted = select(accept, weighted, tuple(torch.zeros_like(x) for x in weighted))
            self.parameter_grads.add(field.parameter_vjp(time, y, weighted))
