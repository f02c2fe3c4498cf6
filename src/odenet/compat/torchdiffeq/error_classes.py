"""Failures of a solve that are also AssertionErrors, as callers of torchdiffeq catch them."""

from __future__ import annotations

from collections.abc import Generator
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
def as_assertions() -> Generator[None, None, None]:
    """Raise a failed solve as the subclass that is also an AssertionError, with torchdiffeq's option names."""
    try:
        yield
    except SolveError as error:
        twin = _TWINS.get(type(error))
        if twin is None:
            raise
        # replace option names by torchdiffeq's, which has no on_failure
        text = str(error).replace("max_steps", "max_num_steps").replace("PID(jump_ts=...)", "options={'jump_t': ...}")
        text = text.replace(", or pass on_failure='return' to get the part that was solved", "")
        raise twin(text, t=error.t, dt=error.dt, sample=error.sample, component=error.component) from None
