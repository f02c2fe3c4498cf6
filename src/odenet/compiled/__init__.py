"""The compiled driver: whole solves, and exact backward passes over them, as one call of machine code each."""

from __future__ import annotations

from ..engine.integrate import Request
from ..engine.problem import Problem
from ..errors import warn
from ..gradients.base import Gradient, Trajectory
from .interpreter import as_before

_told: set[str] = set()


def compiled_or_none(p: Problem, how: Gradient, request: Request) -> Trajectory | None:
    """The trajectory by compiled code; None where that cannot be, with one warning for each reason."""
    from .capture import NotCompilableError, told
    from .compiled_solve import solve_compiled

    try:
        with as_before():
            return solve_compiled(p, how, request)
    except NotCompilableError as error:
        reason = str(error)
    except Exception as error:  # whatever stops a compiler: eager code then shows f's own errors as they are
        reason = told(error)
    if reason not in _told:
        _told.add(reason)
        warn(f"compile=True: solving without compiled code, as {reason}")
    return None
