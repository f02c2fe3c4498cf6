"""The compiled driver: whole solves, and exact backward passes over them, as one call of machine code each."""

from __future__ import annotations

import warnings
from dataclasses import replace

import torch
from torch import Tensor

from ..core.leaves import select
from ..engine.drive import Driver
from ..engine.integrate import Request
from ..engine.problem import Problem
from ..gradients.base import Gradient, Trajectory
from ..gradients.frozen import replaced, unfailed

_told: set[str] = set()


def compiled_or_none(p: Problem, driver: Driver, how: Gradient, request: Request) -> Trajectory | None:
    """The trajectory by compiled code; None where that cannot be, with one warning for each reason."""
    from .capture import NotCompilableError, told
    from .solving import solve_compiled

    try:
        found = solve_compiled(p, driver, how, request)
        good = unfailed(found.outcome.state.status) if torch.is_grad_enabled() else None
        if good is None:
            return found
        return _beside(good, found, solve_compiled(replaced(p, good), driver, how, request))
    except NotCompilableError as error:
        reason = str(error)
    except Exception as error:  # whatever stops a compiler: eager code then shows f's own errors as they are
        reason = told(error)
    if reason not in _told:
        _told.add(reason)
        warnings.warn(f"compile=True: solving without compiled code, as {reason}", stacklevel=3)
    return None


def _beside(good: Tensor, found: Trajectory, others: Trajectory) -> Trajectory:
    """What was found, where samples did not fail with the gradients of `others`, a solve without those that did.

    A library takes all samples through all steps, and zero times what is not finite in one is NaN for all.
    """
    others.stats.update({k: found.stats[k] for k in ("nfe", "accepted", "rejected")})
    dense, before = others.dense, found.dense
    return replace(
        others,
        ys=select(good, others.ys, tuple(y.detach() for y in found.ys)),
        y1=select(good, others.y1, tuple(y.detach() for y in found.y1)),
        dense=None if dense is None or before is None else lambda t: select(good, dense(t), before(t)),
        outcome=found.outcome,
    )
