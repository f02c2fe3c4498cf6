"""Classes of errors and warnings. All errors are RuntimeErrors.

The messages of a failed solve are written in engine/diagnose.py, those of a wrong argument where it is checked.
"""

from __future__ import annotations

import difflib
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

_LIBRARY_FOLDERS = tuple(str(Path(module).parent) for module in (__file__, torch.__file__))


class SolveError(RuntimeError):
    """A solve failed before its last time.

    t: the time reached. dt: the size of the failed step attempt. sample: the index of the failed sample with
    per_sample, else None. component: the component of y with the largest error, such as "y['x'][3]".
    """

    def __init__(self, message: str, *, t: float, dt: float, sample: int | None, component: str) -> None:
        super().__init__(message)
        self.t, self.dt, self.sample, self.component = t, dt, sample, component

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by `_rebuild`: by default pickle calls the class with the message alone, and a process pool hangs."""
        return _rebuild, (type(self), self.args), vars(self)


def _rebuild(kind: type[SolveError], args: tuple[Any, ...]) -> SolveError:
    return kind.__new__(kind, *args)


class MaxStepsError(SolveError):
    """`max_steps` step attempts did not reach the last time."""


class NonFiniteError(SolveError):
    """f returned NaN or infinity for a finite state of ordinary magnitude."""


class BlowUpError(SolveError):
    """The solution grows without bound."""


class StepUnderflowError(SolveError):
    """The step size fell below the rounding of the time, although all values are finite."""


class NonlinearSolveError(SolveError):
    """The equations of an implicit step could not be solved, even for the smallest step."""


class PileUpError(SolveError):
    """Events with a reset accumulate at a time that the solve cannot pass (Zeno behaviour)."""


class CaptureError(RuntimeError):
    """f captures a tensor, or draws random numbers, for which this `gradient` cannot give the right gradient."""


class WrappedFieldError(RuntimeError):
    """f communicates with other processes in each evaluation: it contains DistributedDataParallel, FSDP or the like."""


class ConvergenceWarning(UserWarning):
    """An iteration inside a step stopped before it converged; the solve continues."""


class StiffnessWarning(UserWarning):
    """The stability of an explicit method limits the step size, not the tolerances; the solve continues."""


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the innermost line of the caller's code, outside this library and PyTorch."""
    frame, depth = sys._getframe(1), 2  # pyright: ignore[reportPrivateUsage]  # inspect.stack() reads source files
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_LIBRARY_FOLDERS):
        frame, depth = frame.f_back, depth + 1
    warnings.warn(message, category, stacklevel=depth)


def unknown_name(argument: str, name: str, known: Iterable[str], meant: str | None = None) -> ValueError:
    """The error for an unknown name. meant: the known name to suggest; None: the one of the most similar spelling."""
    names = sorted(known)
    suggestions = [meant] if meant else difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.4)
    hint = f" Did you mean {suggestions[0]!r}?" if suggestions else ""
    return ValueError(f"{argument}={name!r} is unknown.{hint} Known: {', '.join(names)}.")
