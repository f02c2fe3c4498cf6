"""Errors of a solve. All are RuntimeErrors; what failed is also in their attributes."""

from __future__ import annotations

import difflib
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

_INSIDE = tuple(str(Path(module).parent) for module in (__file__, torch.__file__))


class SolveError(RuntimeError):
    """A solve ended before its last time.

    t: time reached. dt: size of the attempt that failed. sample: index with per_sample, else None. component: the
    worst component of y, such as "y['x'][3]".
    """

    def __init__(self, message: str, *, t: float, dt: float, sample: int | None, component: str) -> None:
        super().__init__(message)
        self.t, self.dt, self.sample, self.component = t, dt, sample, component

    def __reduce__(self) -> tuple[Any, ...]:
        """For pickle and copy, which would call the class with the message alone: a pool of processes then waits."""
        return _again, (type(self), self.args), vars(self)


def _again(kind: type[SolveError], args: tuple[Any, ...]) -> SolveError:
    return kind.__new__(kind, *args)


class MaxStepsError(SolveError):
    """`max_steps` attempts did not reach the end."""


class NonFiniteError(SolveError):
    """f returned NaN or infinity from a finite state of ordinary size."""


class BlowUpError(SolveError):
    """The solution itself grows without bound."""


class StepUnderflowError(SolveError):
    """The step size fell below the resolution of time with everything finite."""


class NonlinearSolveError(SolveError):
    """The equations of an implicit step could not be solved, however small the step."""


class PileUpError(SolveError):
    """Events of a reset follow one another ever faster, towards a time that no solve gets beyond."""


class CaptureError(RuntimeError):
    """f closes over something whose gradient cannot be given with the choice of `gradient`."""


class WrappedFieldError(RuntimeError):
    """f talks to other processes at every evaluation: a part of it is wrapped by DistributedDataParallel or FSDP."""


class ConvergenceWarning(UserWarning):
    """An iteration inside a step ended before it converged; the solve goes on."""


class StiffnessWarning(UserWarning):
    """The steps of an explicit method are held down by its stability and not by the tolerances; the solve goes on."""


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """A warning at the caller's line: the nearest that is neither this library's nor PyTorch's."""
    frame, depth = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_INSIDE):
        frame, depth = frame.f_back, depth + 1
    warnings.warn(message, category, stacklevel=depth)


def unknown_name(argument: str, given: str, known: Iterable[str], meant: str | None = None) -> ValueError:
    """The error for a name that is not in a table, with what is `meant` by it, else the nearest that is."""
    names = sorted(known)
    near = [meant] if meant else difflib.get_close_matches(given.lower(), names, n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return ValueError(f"{argument}={given!r} is unknown.{hint} Known: {', '.join(names)}.")
