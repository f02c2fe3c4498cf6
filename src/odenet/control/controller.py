"""Controller: accepts or rejects a step attempt, and proposes the next step size."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor

from ..core.leaves import Leaves
from ..core.scalars import MaskLike, ScalarLike, isfinite, where
from ..core.serialization import PortableSettings
from ..methods.method import Norm, StepSizeHint
from .stop_times import Times

_MIN_GROWTH = 1.2  # a smaller growth does not pay for new factors of a matrix. Hairer & Wanner II, IV.8

ControllerState = tuple[ScalarLike, ...]


def apply_norm(norm: Norm, leaves: Leaves) -> Tensor | float:
    """norm(leaves). Raises TypeError where the result is neither a number nor a tensor."""
    out = norm(leaves)
    if not isinstance(out, (Tensor, float, int)):
        raise TypeError(f"norm must return a number, or a tensor of one (with per_sample, of shape (B,)); got {out!r}")
    return out


class Attempt(NamedTuple):
    """The step attempt that a controller decides on: floats in a joint solve, tensors (B,) per sample.

    h: size of the step, positive.
    ratio: error over tolerance. 0 without an error estimate; not finite where the new state or its error is not, or
        where the method could not solve its equations.
    order: k, where the error falls like h^k.
    step_hint: the step size that the method asks for.
    rejected: True where the attempt before this one was rejected.
    """

    h: ScalarLike
    ratio: ScalarLike
    order: ScalarLike = 1
    step_hint: StepSizeHint | None = None
    rejected: MaskLike = False

    def max_factor(self, factor_max: float) -> ScalarLike:
        """Upper limit of the step size factor: 1 right after a rejection. Hairer, Norsett & Wanner I, II.4."""
        return where(self.rejected, 1.0, factor_max)

    def apply_hint(self, accept: MaskLike, factor: ScalarLike) -> ScalarLike:
        """The step size factor after the method's hint."""
        if self.step_hint is None:
            return factor
        hint = self.step_hint.factor
        # Without a solution there is no error: the method says by how much to shorten, or else the controller does.
        factor = where(isfinite(self.ratio), factor * hint, where(hint < 1.0, hint, factor))
        return where(accept & self.step_hint.hold & (factor < _MIN_GROWTH), 1.0, factor)


class Decision(NamedTuple):
    """What a controller decides: floats and bools in a joint solve, tensors (B,) per sample.

    accept: the step is accepted. h: size of the next attempt. state: controller state for the next decision.
    failed: the solve of this sample ends with an error.
    """

    accept: MaskLike
    h: ScalarLike
    state: ControllerState
    failed: MaskLike


class Controller(PortableSettings, ABC):
    """Step-size control, written once for floats (joint solve) and for tensors (B,) (per sample).

    adaptive: the controller needs the method's error estimate, and a first step size (`initial_step_size`).
    norm: of the leaves of error / tolerance; None: RMS.
    finite: without an error estimate, a step is accepted only where the new state is finite. False: always accepted,
        and the state is never checked.
    every_output, step_ts, jump_ts, perturb, stretch: see `StopRule`.
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
        """Controller state for the first decision; its entries have the type, shape and dtype of h."""

    @abstractmethod
    def initial_step(self, h: ScalarLike) -> ScalarLike:
        """The first step size. h: the one that the engine computed."""

    def constant_decision(self) -> Decision | None:
        """The decision on any step of a joint solve with a finite end. None: it depends on the attempt."""
        return None

    @abstractmethod
    def decide(self, attempt: Attempt, state: ControllerState) -> Decision: ...
