"""Method: one step of a solver, and what a step leaves behind."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import NamedTuple, final

import torch
from torch import Tensor

from ..core.dense import Coefficients, hermite
from ..core.leaves import Leaves, spread_over
from ..errors import unknown_name

Field = Callable[[Tensor, Leaves], Leaves]
Bars = list[Tensor | None]
"""Cotangents, leaf by leaf; None: zero."""
Stage = tuple[Leaves, Leaves]
"""An evaluation of f: the state, as leaves of a graph, and the slope that came out of it."""
Vjp = Callable[[Leaves, Bars, Leaves], Bars]
"""Slopes and their cotangents -> cotangents of the states they were evaluated at."""


Span = tuple[Leaves, list[Tensor]]
"""The length of a step spread over the leaves, and the times of its evaluations in the dtype of f's time."""


class Step(NamedTuple):
    """What one attempted step from t0 to t1 gives.

    y: the state at t1. carry: what the next step starts from (the slope at t1 of a first-same-as-last method), else ().
    stages: what the error estimate and the dense output are made of.
    """

    y: Leaves
    carry: Leaves
    stages: tuple[Leaves, ...]


class Method(ABC):
    """A one-step method. Pure: tensors in, tensors out.

    `order` is that of the solution it advances with; `error_order` is the k for which the error estimate falls like
    dt^k, None where there is no estimate. Steps are given by both ends: a stage at t1 sees exactly t1.
    """

    name: str
    order: int
    error_order: int | None
    stages: int = 1  # evaluations of f in a step, about
    carry_is_slope: bool = True  # `init` gives the carry at any (t, y), as for a first-same-as-last method or none
    interpolation: str = "own"
    stability: float = 0.0  # how far it is stable along the negative real axis, in dt * eigenvalue; 0: nobody asks
    branchless: bool = False  # a step is operations alone, and looks at no value: it can be vmapped and traced

    plans: bool = False  # has `spans` and `planned`, for steps whose times are known beforehand

    @abstractmethod
    def init(self, f: Field, t: Tensor, y: Leaves) -> Leaves:
        """The carry at the start (t, y)."""

    @abstractmethod
    def step(self, f: Field, t0: Tensor, t1: Tensor, y: Leaves, carry: Leaves) -> Step:
        """One attempt from t0 to t1."""

    def spans(self, t0: Tensor, t1: Tensor, y: Leaves, dtype: torch.dtype | None) -> Iterable[Span]:
        """Of each step from t0 to t1, both (n,), what `planned` takes."""
        raise NotImplementedError

    def planned(self, f: Field, span: Span, y: Leaves, carry: Leaves) -> Step:
        """`step`, given its times: the same to the last bit."""
        raise NotImplementedError

    def increment(self, f: Field, t0: Tensor, t1: Tensor, y: Leaves) -> tuple[Leaves, tuple[Leaves, ...]]:
        """y1 - y from no carry, where it can be without the rounding of y1, and the stages of that step."""
        step = self.step(f, t0, t1, y, self.init(f, t0, y))
        return tuple(b - a for a, b in zip(y, step.y, strict=True)), step.stages

    def restart(self, f: Field, t: Tensor, y: Leaves, carry: Leaves) -> Leaves:
        """The carry that goes on from (t, y), where f jumps, instead of `carry`. A history must be begun anew."""
        return self.init(f, t, y) if self.carry_is_slope else carry

    @abstractmethod
    def error(self, f: Field, t0: Tensor, t1: Tensor, y: Leaves, step: Step) -> Leaves | None:
        """An estimate of the local error of a step, asked for where the step size depends on it. None: there is none.

        Called without grad mode; it may evaluate f again where the step came from `increment`.
        """

    def stiff_part(self, step: Step) -> tuple[Leaves, Leaves] | None:
        """Of a step with all its stages: (E, D) with E = dt J D for a linear f, largest in the fastest modes.

        None where stages are missing, or there is no error estimate. See engine/stiffness.py.
        """
        return None

    @abstractmethod
    def polynomial(self, f: Field, t0: Tensor, t1: Tensor, y: Leaves, step: Step) -> Coefficients:
        """The method's own dense output of an accepted step; it may evaluate f again."""

    def smooth(self) -> Method:
        """The same method with steps that give second derivatives too, where its own give only first ones."""
        return self

    @final
    def interpolated(self, by: str) -> Method:
        """The same method with another dense output: "own", "linear" between the ends of a step, or "cubic" Hermite."""
        if by not in ("own", "linear", "cubic"):
            raise unknown_name("interpolation", by, ("own", "linear", "cubic"))
        other = copy.copy(self)
        other.interpolation = by
        return other

    @final
    def dense(self, f: Field, t0: Tensor, t1: Tensor, y: Leaves, step: Step) -> Coefficients:
        """The dense output of an accepted step, by `interpolation`; it may evaluate f again."""
        if self.interpolation == "linear":
            return (tuple(b - a for a, b in zip(y, step.y, strict=True)),)
        if self.interpolation == "cubic":
            slope = step.carry if self.carry_is_slope and step.carry else f(t1, step.y)
            return hermite(spread_over(t1 - t0, y), y, step.y, f(t0, y), slope)
        return self.polynomial(f, t0, t1, y, step)


class StagewiseMethod(Method):
    """A method that pulls cotangents through its own sums, given what pulls them through its evaluations of f."""

    @abstractmethod
    def pull(self, dt: Leaves, stages: list[Stage], y_bar: Bars, carry_bar: Bars, vjp: Vjp) -> tuple[Bars, Bars]:
        """Cotangents of y and the carry after a step -> before it, from its evaluations of f, in their order.

        dt: spread over the leaves. stages: emptied on the way. Called without grad mode, and there is no graph of what
        joins the evaluations.
        """

    @abstractmethod
    def pull_increment(self, dt: Leaves, stages: list[Stage], bar: Bars, vjp: Vjp) -> Bars:
        """The same for `increment`: its cotangent -> that of y."""
