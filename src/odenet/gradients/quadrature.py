"""The gradient of parameters in a backward solve: the integral of a^T df/dtheta, outside the ODE's state."""

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
    """The Gauss-Legendre rule for a method of this order."""
    return _GAUSS[min(4, (order + 1) // 2)]


def parameter_integral(field: AdjointField, method: Method, controller: Controller, batched: bool) -> ParameterIntegral:
    """The cheaper rule where it applies: the method's stages, if no step is rejected and no stage reused."""
    rule = StopRule.from_controller(controller)
    no_jumps = rule.jump_ts is None and not rule.perturb  # f is evaluated again at a jump
    if isinstance(method, ExplicitRK) and not (method.tableau.fsal or controller.adaptive or batched) and no_jumps:
        return StageSum(field, method)
    return Quadrature(field, method.order)


class ParameterIntegral(Observer):
    """Sums the integral of a^T df/dtheta over the accepted steps of a backward solve."""

    def __init__(self, field: AdjointField) -> None:
        self.field, self.parameter_grads = field, ParameterGrads(len(field.parameters))

    def total(self) -> Cotangents:
        """The integral for each entry of the field's `parameters`."""
        self.parameter_grads.switch_to(self.field.f, ALL)
        return self.parameter_grads.total

    def add(self, cotangents: Cotangents) -> None:
        """Add cotangents that belong to no step."""
        self.parameter_grads.switch_to(self.field.f, ALL)
        self.parameter_grads.add(cotangents)


@final
class StageSum(ParameterIntegral):
    """The integral by the method's own weights, from the stages of its steps.

    The same as with the integral in the ODE's state, without its memory: one more VJP for each evaluation that the step
    makes anyway, where `Quadrature` makes its own evaluations.
    """

    def __init__(self, field: AdjointField, method: ExplicitRK) -> None:
        super().__init__(field)
        self.weights = method.tableau.b
        field.collected_vjps = [] if field.parameters else None

    def observe(self, attempt: StepAttempt) -> None:
        stage_vjps, totals = self.field.collected_vjps, self.parameter_grads.total
        if stage_vjps is None:
            return
        self.field.collected_vjps = []
        if not attempt.accept:
            return
        for weight, vjps in zip(self.weights, stage_vjps, strict=True):
            present = [(j, g) for j, g in enumerate(vjps) if g is not None]
            sums = []
            for j, g in present:
                total = totals[j]
                if total is None:
                    total = totals[j] = torch.zeros_like(g)
                sums.append(total)
            if sums and weight != 0.0:  # dt is negative in a backward solve
                grads = [g for _, g in present]
                torch._foreach_add_(sums, grads, alpha=weight * cast(float, attempt.t0 - attempt.t1))  # pyright: ignore[reportPrivateImportUsage, reportPrivateUsage]


@final
class Quadrature(ParameterIntegral):
    """The integral by Gauss-Legendre quadrature on the dense output of each step."""

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
            weighted = tuple(x * expand_to(-weight * length, x) for x in a)
            weighted = select(accept, weighted, tuple(torch.zeros_like(x) for x in weighted))
            self.parameter_grads.add(field.parameter_vjp(time, y, weighted))
