"""Method: one step of a solver, and what a step leaves behind."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import NamedTuple, final

import torch
from torch import Tensor

from ..core.dense import Coefficients, hermite
from ..core.field_protocols import Field
from ..core.leaves import Leaves, expand_over
from ..core.norms import Tolerance
from ..core.scalars import MaskLike, ScalarLike
from ..errors import unknown_name

Cotangents = list[Tensor | None]
"""Cotangents, leaf by leaf; None: zero."""
Stage = tuple[Leaves, Leaves]
"""An evaluation of f: the state, as leaves of a graph, and the slope that came out of it."""
Vjp = Callable[[Leaves, Cotangents, Leaves], Cotangents]
"""Slopes and their cotangents -> cotangents of the states they were evaluated at."""


Span = tuple[Leaves, list[Tensor]]
"""The length of a step spread over the leaves, and the times of its evaluations in the dtype of f's time."""


Cache = tuple[Tensor, ...]
"""What a method remembers without derivatives: tensors of any dtype, with a row for each sample of a batch."""


class Tolerances(NamedTuple):
    """Those of the solve: rtol and atol of each leaf, and the norm of the controller (None: RMS)."""

    rtol: Tolerance
    atol: Tolerance
    norm: Callable[[Leaves], Tensor] | None = None


class StepInput(NamedTuple):
    """What a step may look at. A new need is a new field.

    f: the equations. t0, t1: both ends of the step, () or (B,). y: the state at t0.
    carry: what the method carries from an accepted step to the next; differentiable, and on the tape.
    cache: what it remembers from any attempt to the next; not differentiable, and never on the tape. That of
        `Method.remember` in the first step and in one after a jump; () in a step that a backward pass takes again,
        which has to give the same: what changes the formula, such as an order, belongs in the carry.
    tolerances: of the solve, where an error chooses its steps; None: an iteration inside the step ends at rounding.
    rejected: samples of which the attempt before was rejected.
    running: samples that take the step; the others have t1 == t0, and what they give is not used. None: all.
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
    """What step size a method asks for.

    most: the next step is at most so many times as long as the error allows, at most 1. hold: keep the size rather than
    change it by little, as what belongs to this size can be used again.
    """

    max_step: ScalarLike
    hold: MaskLike


class Counts(NamedTuple):
    """Jacobians and factorisations of one step, of each sample, (B,) or ().

    nfe: of `within` evaluations of f those that were a sample's own, as it had not converged; all others in the step
    were for all.
    """

    njev: Tensor
    nlu: Tensor
    nfe: Tensor | int = 0
    within: int = 0


class Step(NamedTuple):
    """What one attempted step from t0 to t1 gives.

    y: the state at t1. carry: what the next step starts from (the slope at t1 of a first-same-as-last method), else ().
    stages: what the error estimate and the dense output are made of.
    cache: for the next attempt, whether this one is accepted or not.
    status: `StepStatus` codes, () or (B,); None: all is well. What is not OK is rejected.
    order: that of the error estimate, where it is another than the method's; () or (B,).
    wish: None: the error alone decides. counts: None: each evaluation was for all samples.
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
    """A one-step method. Pure: tensors in, tensors out.

    `name` is what messages call it. `order` is that of the solution it advances with; `error_order` is the k for which
    the error estimate falls like dt^k, None where there is no estimate. Steps are given by both ends: a stage at t1
    sees exactly t1. `carry_is_slope`: the carry, where there is one, is f(t1, y1), which then need not be evaluated for
    a first step size or a Hermite polynomial; False where it is anything else, such as a history.
    """

    name: str
    order: int
    error_order: int | None
    num_stages: int = 1  # evaluations of f in a step, about
    carry_is_slope: bool = True
    interpolation: str = "own"
    stability_interval: float = (
        0.0  # how far it is stable along the negative real axis, in dt * eigenvalue; 0: nobody asks
    )
    lookahead: float = 0.0  # how far past its end a step evaluates f, in its length
    parts: tuple[str, ...] = ()  # of an f that is `Terms`, which the steps evaluate as `at.f.part(name)`
    predictive: bool = False  # what its steps cost depends on their size: see control/predictive.py
    traceable: bool = False  # a step is operations alone, and looks at no value: it can be vmapped and traced

    plans: bool = False  # has `spans` and `planned`, for steps whose times are known beforehand

    def init(self, f: Field, t: Tensor, y: Leaves) -> Leaves:
        """The carry at the start (t, y)."""
        return ()

    def init_cache(self, t: Tensor, y: Leaves) -> Cache:
        """The cache of a first step from (t, y), and of a first one after a jump."""
        return ()

    @abstractmethod
    def step(self, at: StepInput) -> Step:
        """One attempt from t0 to t1."""

    def spans(self, t0: Tensor, t1: Tensor, y: Leaves, dtype: torch.dtype | None) -> Iterable[Span]:
        """Of each step from t0 to t1, both (n,), what `planned` takes."""
        raise NotImplementedError(f"{type(self).__name__} has plans=True, and defines spans and planned")

    def planned(self, f: Field, span: Span, y: Leaves, carry: Leaves) -> Step:
        """`step`, given its times: the same to the last bit."""
        raise NotImplementedError(f"{type(self).__name__} has plans=True, and defines spans and planned")

    def increment(self, at: StepInput) -> tuple[Leaves, tuple[Leaves, ...]]:
        """y1 - y from no carry, where it can be without the rounding of y1, and the stages of that step."""
        step = self.step(at._replace(carry=self.init(at.f, at.t0, at.y)))
        return tuple(b - a for a, b in zip(at.y, step.y, strict=True)), step.stages

    def restart(self, f: Field, t: Tensor, y: Leaves, carry: Leaves) -> Leaves:
        """The carry that goes on from (t, y), where f jumps, instead of `carry`. A history must be begun anew."""
        return self.init(f, t, y)

    def error(self, at: StepInput, step: Step) -> Leaves | None:
        """An estimate of the local error of a step, asked for where the step size depends on it. None: there is none.

        Called without grad mode; it may evaluate f again where the step came from `increment`.
        """
        return None

    def stiff_part(self, step: Step) -> tuple[Leaves, Leaves] | None:
        """Of a step with all its stages: (E, D) with E = dt J D for a linear f, largest in the fastest modes.

        None where stages are missing, or there is no error estimate. See engine/stiffness.py.
        """
        return None

    def polynomial(self, at: StepInput, step: Step) -> Coefficients:
        """The method's own dense output of an accepted step; it may evaluate f again."""
        slopes = at.f(at.t0, at.y), at.f(at.t1, step.y)
        return hermite(expand_over(at.t1 - at.t0, at.y), at.y, step.y, *slopes)

    def failure_reason(self, cache: Cache, sample: int | None) -> str:
        """What is known of the last attempts of a sample whose equations could not be solved; a part of a message."""
        return ""

    def wrong_jacobian(self, f: Field, t: Tensor, y: Leaves, sample: int | None) -> tuple[str, str] | None:
        """Cause and cure, where a solve failed at (t, y) and df/dy as the method has it is not that of f."""
        return None

    def for_control(self, adaptive: bool) -> Method:
        """The method of a solve whose steps an error chooses, or does not."""
        return self

    def twice_differentiable(self) -> Method:
        """The same method with steps that give second derivatives too, where its own give only first ones."""
        return self

    @final
    def with_dense_output(self, by: str) -> Method:
        """The same method with another dense output: "own", "linear" between the ends of a step, or "cubic" Hermite."""
        if by not in ("own", "linear", "cubic"):
            raise unknown_name("interpolation", by, ("own", "linear", "cubic"))
        other = copy.copy(self)
        other.interpolation = by
        return other

    @final
    def dense(self, at: StepInput, step: Step) -> Coefficients:
        """The dense output of an accepted step, by `interpolation`; it may evaluate f again."""
        if self.interpolation == "linear":
            return (tuple(b - a for a, b in zip(at.y, step.y, strict=True)),)
        if self.interpolation == "cubic":
            slope = step.carry if self.carry_is_slope and step.carry else at.f(at.t1, step.y)
            return hermite(expand_over(at.t1 - at.t0, at.y), at.y, step.y, at.f(at.t0, at.y), slope)
        return self.polynomial(at, step)

    def counted_dense(self, at: StepInput, step: Step) -> tuple[Coefficients, Counts | None]:
        """`dense`, and what it took of each sample. None: each evaluation was for all samples."""
        return self.dense(at, step), None


class StagewiseMethod(Method):
    """A method that pulls cotangents through its own sums, given what pulls them through its evaluations of f."""

    @abstractmethod
    def vjp(
        self, dt: Leaves, stages: list[Stage], y_bar: Cotangents, carry_bar: Cotangents, vjp: Vjp
    ) -> tuple[Cotangents, Cotangents]:
        """Cotangents of y and the carry after a step -> before it, from its evaluations of f, in their order.

        dt: spread over the leaves. stages: emptied on the way. Called without grad mode, and there is no graph of what
        joins the evaluations.
        """

    @abstractmethod
    def vjp_increment(self, dt: Leaves, stages: list[Stage], bar: Cotangents, vjp: Vjp) -> Cotangents:
        """The same for `increment`: its cotangent -> that of y."""
