"""The back end of `compile=True`: a whole solve, and its exact backward pass, as one call of machine code each."""

from __future__ import annotations

from ..engine.integrate import Request
from ..engine.problem import Problem
from ..errors import warn
from ..gradients.gradient import Gradient, Trajectory
from .interpreter import restore_on_error

_warned: set[str] = set()


def compiled_or_none(p: Problem, how: Gradient, request: Request) -> Trajectory | None:
    """The trajectory by compiled code; None, with one warning a reason, if that is not possible."""
    from .compiled_solve import solve_compiled
    from .field_graph import NotCompilableError, describe_error

    try:
        with restore_on_error():
            return solve_compiled(p, how, request)
    except NotCompilableError as error:
        reason = str(error)
    except Exception as error:  # any failure of a compiler: the eager solve raises f's own errors
        reason = describe_error(error)
    if reason not in _warned:
        _warned.add(reason)
        warn(f"compile=True: solving without compiled code, as {reason}")
    return None
