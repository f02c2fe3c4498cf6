"""odenet: neural ordinary differential equations in PyTorch."""

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import nn
from .api.gradient_report import GradientReport, GradientRow, gradient_report
from .api.option_types import GradientName, MethodName, SolveOptions
from .api.solution import Solution
from .api.solve import Solver, solve
from .control import PID, ConstantStep, Grid, Predictive
from .core.field_protocols import UserField
from .core.status import Status
from .core.terms import Partitioned, Terms
from .engine.callbacks import Callbacks
from .engine.step_recorder import Steps
from .errors import (
    BlowUpError,
    ConvergenceWarning,
    MaxStepsError,
    NonFiniteError,
    NonlinearSolveError,
    PileUpError,
    SolveError,
    StepUnderflowError,
    StiffnessWarning,
)
from .events.event import Event, Hit
from .gradients import Adjoint, Backprop, Discrete, Forward, GaussAdjoint, Reversible
from .gradients.gradient import Stats

if TYPE_CHECKING:
    from . import series

__version__ = "0.1.0"

logging.getLogger("odenet").addHandler(logging.NullHandler())  # silent unless the application configures logging

__all__ = [
    "PID",
    "Adjoint",
    "Backprop",
    "BlowUpError",
    "Callbacks",
    "ConstantStep",
    "ConvergenceWarning",
    "Discrete",
    "Event",
    "Forward",
    "GaussAdjoint",
    "GradientName",
    "GradientReport",
    "GradientRow",
    "Grid",
    "Hit",
    "MaxStepsError",
    "MethodName",
    "NonFiniteError",
    "NonlinearSolveError",
    "Partitioned",
    "PileUpError",
    "Predictive",
    "Reversible",
    "Solution",
    "SolveError",
    "SolveOptions",
    "Solver",
    "Stats",
    "Status",
    "StepUnderflowError",
    "Steps",
    "StiffnessWarning",
    "Terms",
    "UserField",
    "gradient_report",
    "nn",
    "series",
    "solve",
]


def __getattr__(name: str) -> Any:
    if name == "series":  # imported when it is first used: `import odenet` is not to wait for it
        return import_module(".series", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
