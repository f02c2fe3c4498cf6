"""Method: the contract of one step, `StepInput` -> `Step`."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from ..core.dense import Coefficients, hermite
from ..core.field_protocols import Field
from ..core.leaves import Leaves, expand_over
from ..core.norms import Tolerance
from ..core.scalars import MaskLike, ScalarLike
from ..errors import unknown_name

Norm = Callable[[Leaves], Any]
"""A norm of the leaves: a number, or a tensor, () or per sample (B,). The caller's code: its result is checked."""
Cache = tuple[Tensor, ...]
"""Non-differentiable memory of a method: tensors of any dtype; per sample, dimension 0 is the batch."""
StepPlan = tuple[Leaves, list[Tensor]]
"""dt expanded to the shapes of the leaves, and the times of the stages in the dtype of f's time."""
Cotangents = list[Tensor | None]
"""A cotangent for each leaf; None: zero."""
Stage = tuple[Leaves, Leaves]
"""An evaluation of f with a graph: the state, as leaves of the graph, and the slope."""
Vjp = Callable[[Leaves, Cotangents, Leaves], Cotangents]
"""(slope, cotangents of the slope, state) -> cotangents of the state, through one evaluation of f."""


class Tolerances(NamedTuple):
    """Tolerances of the solve: rtol and atol of each leaf, and the norm of the controller (None: RMS)."""

    rtol: Tolerance
    atol: Tolerance
    norm: Norm | None = None


class StepInput(NamedTuple):
    """The arguments of a step. New needs are new fields.

    f: the vector field. t0, t1: both ends of the step, () or (B,). y: the state at t0.
    carry: what the method passes from an accepted step to the next; differentiable, and on the tape.
    cache: what the method passes from any attempt to the next, accepted or not; not differentiable, never on the tape.
        In the first step and after a jump it is that of `Method.init_cache`. In a step that a backward pass replays it
        is (), and the step has to give the same result: what changes the formula, such as an order, goes into the
        carry.
    tolerances: of the solve, where an error estimate controls its steps. None: iterations inside the step converge to
        round-off.
    rejected: True for samples of which the attempt before was rejected.
    running: True for samples that take the step, (B,). The others have t1 == t0, and their result is not used. None:
        all samples take it.
    """

    f: Field
    t0: Tensor
    t1: Tensor
    y: Leaves
    carry: Leaves = ()
    cache: Cache = ()
    tolerances: Tolerances | None = None
    rejected: MaskLike = False
    running: Tensor | None = None


class StepSizeHint(NamedTuple):
    """The step size that a method asks for.

    factor: multiplies the step size that the error allows, in [0, 1]; 0: the method gives up on this sample.
    hold: keep the step size instead of a small growth, since something that depends on it, such as factors of a matrix,
        can then be used again.
    """

    factor: ScalarLike
    hold: MaskLike


class Counts(NamedTuple):
    """Jacobians and factorisations in one step, () or (B,).

    counted_calls: number of calls of f in the step that count only for some samples, as the others had converged.
    nfe: how many of these count for each sample. All other calls in the step count for every sample.
    """

    njev: Tensor
    nlu: Tensor
    nfe: Tensor | int = 0
    counted_calls: int = 0


class Step(NamedTuple):
    """The result of one step from t0 to t1.

    y: the state at t1. carry: for the next step (of a first-same-as-last method the slope at t1), or ().
    stages: input of the error estimate and the dense output.
    cache: for the next attempt, whether this one is accepted or not.
    status: `StepStatus` codes, () or (B,); None: OK. A step that is not OK is rejected.
    order: of the error estimate, () or (B,), where it is not `Method.error_order`.
    step_hint: None: the error alone controls the step size. counts: None: each call of f counts for every sample.
    """

    y: Leaves
    carry: Leaves = ()
    stages: tuple[Leaves, ...] = ()
    cache: Cache = ()
    status: Tensor | None = None
    order: Tensor | None = None
    step_hint: StepSizeHint | None = None
    counts: Counts | None = None


class Method(ABC):
    """A method for one step. Pure: tensors in, tensors out. A step gets both its ends: a stage at t1 sees exactly t1.

    name: used in messages. order: of the solution. error_order: k, where the error estimate falls like dt^k; None: the
        method has no error estimate. num_stages: approximate number of evaluations of f in a step.
    carry_is_slope: a carry that is not empty is f(t1, y1), so that f is not evaluated again for the first step size or
        a Hermite polynomial. False: the carry is something else, such as a history.
    interpolation: see `with_dense_output`.
    stability_interval: the largest x for which steps are stable at every dt * eigenvalue in [-x, 0]; 0: unknown.
    lookahead: how far beyond t1 a step evaluates f, as a fraction of its length.
    parts: names of the parts of an f that is `Terms`; steps evaluate them as `at.f.part(name)`.
    predictive_control: the default controller is `Predictive`: the cost of a step depends on its size.
    traceable: a step consists of tensor operations alone and never reads a value, so it can be vmapped and traced.
    can_plan_steps: the method has `plan_steps` and `planned_step`, for steps whose times are known beforehand.
    """

    name: str
    order: int
    error_order: int | None
    num_stages: int = 1
    carry_is_slope: bool = True
    interpolation: str = "own"
    stability_interval: float = 0.0
    lookahead: float = 0.0
    parts: tuple[str, ...] = ()
    predictive_control: bool = False
    traceable: bool = False
    can_plan_steps: bool = False

    def init(self, f: Field, t: Tensor, y: Leaves) -> Leaves:
        """The carry of the first step, from (t, y)."""
        return ()

    def init_cache(self, t: Tensor, y: Leaves) -> Cache:
        """The cache of the first step from (t, y), also of the first one after a jump."""
        return ()

    @abstractmethod
    def step(self, at: StepInput) -> Step:
        """One attempt from t0 to t1."""

    def plan_steps(self, t0: Tensor, t1: Tensor, y: Leaves, dtype: torch.dtype | None) -> Iterable[StepPlan]:
        """The plans of n steps, from t0 to t1, both (n,). dtype: of f's time; None: that of t0."""
        raise NotImplementedError(f"{type(self).__name__} has can_plan_steps=True but does not define plan_steps")

    def planned_step(self, f: Field, plan: StepPlan, y: Leaves, carry: Leaves) -> Step:
        """The same result as `step`, bit for bit, from a plan."""
        raise NotImplementedError(f"{type(self).__name__} has can_plan_steps=True but does not define planned_step")

    def increment(self, at: StepInput) -> tuple[Leaves, tuple[Leaves, ...]]:
        """y1 - y and the stages of a step without a carry; if possible without the rounding of y1."""
        step = self.step(at._replace(carry=self.init(at.f, at.t0, at.y)))
        return tuple(b - a for a, b in zip(at.y, step.y, strict=True)), step.stages

    def restart(self, f: Field, t: Tensor, y: Leaves, carry: Leaves) -> Leaves:
        """The carry that replaces `carry` at (t, y) where f jumps. A history starts anew."""
        return self.init(f, t, y)

    def error(self, at: StepInput, step: Step) -> Leaves | None:
        """An estimate of the local error of a step; None: the method has none.

        Called where the step size depends on it, without grad mode. It may evaluate f again after `increment`.
        """
        return None

    def stiffness_pair(self, step: Step) -> tuple[Leaves, Leaves] | None:
        """(E, D) with E = dt J D for a linear f, so that E . D / D . D estimates dt * eigenvalue of the stiffest mode.

        None where the step lacks stages, or the method has no error estimate. See engine/stiffness.py.
        """
        return None

    def polynomial(self, at: StepInput, step: Step) -> Coefficients:
        """The method's own dense output of an accepted step; it may evaluate f again."""
        slopes = at.f(at.t0, at.y), at.f(at.t1, step.y)
        return hermite(expand_over(at.t1 - at.t0, at.y), at.y, step.y, *slopes)

    def failure_reason(self, cache: Cache, sample: int | None) -> str:
        """Why the last attempts of a sample could not solve their equations; a clause of an error message."""
        return ""

    def diagnose_jacobian(self, f: Field, t: Tensor, y: Leaves, sample: int | None) -> tuple[str, str] | None:
        """Cause and cure for an error message, where a solve failed at (t, y) and its df/dy is not that of f."""
        return None

    def for_control(self, adaptive: bool) -> Method:
        """The method for a solve whose steps an error estimate controls (adaptive), or does not."""
        return self

    def twice_differentiable(self) -> Method:
        """The same method with steps that have second derivatives, where its own have only first ones."""
        return self

    @final
    def with_dense_output(self, by: str) -> Method:
        """The same method with another dense output: "own", "linear" between the ends of a step, or "cubic" Hermite."""
        if by not in ("own", "linear", "cubic"):
            raise unknown_name("interpolation", by, ("own", "linear", "cubic"))
        method = copy.copy(self)
        method.interpolation = by
        return method

    @final
    def dense(self, at: StepInput, step: Step) -> Coefficients:
        """The dense output of an accepted step, as `interpolation` says; it may evaluate f again."""
        if self.interpolation == "linear":
            return (tuple(b - a for a, b in zip(at.y, step.y, strict=True)),)
        if self.interpolation == "cubic":
            slope = step.carry if self.carry_is_slope and step.carry else at.f(at.t1, step.y)
            return hermite(expand_over(at.t1 - at.t0, at.y), at.y, step.y, at.f(at.t0, at.y), slope)
        return self.polynomial(at, step)

    def dense_with_counts(self, at: StepInput, step: Step) -> tuple[Coefficients, Counts | None]:
        """`dense` and its counts. None: each call of f counts for every sample."""
        return self.dense(at, step), None


class StagewiseMethod(Method):
    """A method with a VJP of its own sums, evaluation by evaluation, given a VJP of f.

    `stages` are the step's evaluations of f in their order; the list is emptied on the way, to free each graph as soon
    as possible. Called without grad mode; nothing but the evaluations has a graph.
    """

    @abstractmethod
    def vjp(
        self, dt: Leaves, stages: list[Stage], y_bar: Cotangents, carry_bar: Cotangents, vjp: Vjp
    ) -> tuple[Cotangents, Cotangents]:
        """Cotangents of y and carry after a step -> those before it. dt: expanded to the shapes of the leaves."""

    @abstractmethod
    def vjp_increment(self, dt: Leaves, stages: list[Stage], increment_bar: Cotangents, vjp: Vjp) -> Cotangents:
        """The VJP of `increment`: its cotangent -> that of y."""
