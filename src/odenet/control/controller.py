"""Controller: accepts or rejects an attempted step and proposes the next step size."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from ..core.leaves import Leaves
from ..core.scalars import MaskLike, ScalarLike, isfinite, where
from ..core.serialization import PortableSettings
from ..methods.method import StepSizeHint
from .stop_times import Times

_LITTLE = 1.2  # growth that is not worth new factors of a matrix. Hairer & Wanner II, IV.8

ControllerState = tuple[ScalarLike, ...]
Norm = Callable[[Leaves], Tensor]


def apply_norm(norm: Norm, leaves: Leaves) -> Tensor | float:
    """The norm of the leaves, which has to be a number."""
    out = norm(leaves)
    if not isinstance(out, (Tensor, float, int)):
        raise TypeError(f"norm must return a number, or a tensor of one (with per_sample of one a sample); got {out!r}")
    return out


class Attempt(NamedTuple):
    """What a controller decides on, in lanes (see core/scalars.py): positive numbers, or tensors of shape (B,).

    h: size of the step. ratio: its error in units of the tolerance; 0 without an estimate, and not finite where a value
    was not, or the method could not solve its equations. order: k, where the error falls like h^k. wish: what the
    method asks for. rejected: the attempt before was rejected.
    """

    h: ScalarLike
    ratio: ScalarLike
    order: ScalarLike = 1
    step_hint: StepSizeHint | None = None
    rejected: MaskLike = False

    def max_factor(self, factor: float) -> ScalarLike:
        """The largest factor of the next step size: right after a rejection 1. Hairer, Norsett & Wanner I, II.4."""
        return where(self.rejected, 1.0, factor)

    def apply_hint(self, accept: MaskLike, factor: ScalarLike) -> ScalarLike:
        """The factor of the next step size, as the method wishes."""
        if self.step_hint is None:
            return factor
        most = self.step_hint.factor
        # of what was not solved no error is known: the method says how much shorter, or else the controller
        factor = where(isfinite(self.ratio), factor * most, where(most < 1.0, most, factor))
        return where(accept & self.step_hint.hold & (factor < _LITTLE), 1.0, factor)


class Decision(NamedTuple):
    """accept: keep this step. h: size of the next attempt. memory: for the next decision. failed: give up."""

    accept: MaskLike
    h: ScalarLike
    state: ControllerState
    failed: MaskLike


class Controller(PortableSettings, ABC):
    """Works on lanes (see core/scalars.py): h and ratio are positive numbers, or tensors of shape (B,).

    adaptive: asks the method for an error estimate and the engine for the first step.
    finite: without an error estimate a step is accepted only where the new state is finite; else always, unseen.
    every_output, step_ts, jump_ts, perturb, stretch: of the `StopRule` of a solve with it, which the engine keeps.
    """

    adaptive: bool
    norm: Norm | None = None
    finite: bool = True
    every_output: bool = False
    step_ts: Times | None = None
    jump_ts: Times | None = None
    perturb: bool = False
    stretch: float = 1.01

    @abstractmethod
    def init_state(self, h: ScalarLike) -> ControllerState:
        """What the first decision starts from; h gives the kind and shape of a lane."""

    @abstractmethod
    def initial_step(self, h: ScalarLike) -> ScalarLike:
        """The first step size, from the engine's guess h."""

    def constant_decision(self) -> Decision | None:
        """The decision on any step of a joint solve that ends in finite values, where that is always the same."""
        return None

    @abstractmethod
    def decide(self, attempt: Attempt, state: ControllerState) -> Decision: ...
