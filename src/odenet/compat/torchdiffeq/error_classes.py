"""Failures of a solve as a caller of torchdiffeq catches them: AssertionErrors, and this library's own as well."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ...errors import BlowUpError, MaxStepsError, NonFiniteError, SolveError, StepUnderflowError


class MaxStepsAssertionError(MaxStepsError, AssertionError):
    """max_num_steps exceeded."""


class NonFiniteAssertionError(NonFiniteError, AssertionError):
    """func returned NaN or infinity."""


class BlowUpAssertionError(BlowUpError, AssertionError):
    """The solution grows without bound."""


class UnderflowAssertionError(StepUnderflowError, AssertionError):
    """The step size fell below the resolution of time."""


_TWINS: dict[type[SolveError], type[SolveError]] = {
    MaxStepsError: MaxStepsAssertionError,
    NonFiniteError: NonFiniteAssertionError,
    BlowUpError: BlowUpAssertionError,
    StepUnderflowError: UnderflowAssertionError,
}


@contextmanager
def as_assertions() -> Iterator[None]:
    """Raise a failure as its twin that is an AssertionError too."""
    try:
        yield
    except SolveError as error:
        twin = _TWINS.get(type(error))
        if twin is None:
            raise
        # the options' names here are torchdiffeq's
        text = str(error).replace("max_steps", "max_num_steps").replace("PID(jump_ts=...)", "options={'jump_t': ...}")
        text = text.split(", or take on_failure")[0].rstrip(".") + "."
        raise twin(text, t=error.t, dt=error.dt, sample=error.sample, component=error.component) from None
