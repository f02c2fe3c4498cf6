"""odenet: neural ordinary differential equations in PyTorch."""

from . import nn
from .api.gradient_report import GradientReport, GradientRow, gradient_report
from .api.solution import Solution
from .api.solve import Solver, solve
from .control import PID, ConstantStep, Grid, Predictive
from .core.status import Status
from .core.terms import Partitioned, Terms
from .engine.callbacks import Callbacks
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
from .events.event import Event
from .gradients import Adjoint, Backprop, Discrete, Forward, GaussAdjoint, Reversible

__version__ = "0.1.0"

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
    "GradientReport",
    "GradientRow",
    "Grid",
    "MaxStepsError",
    "NonFiniteError",
    "NonlinearSolveError",
    "Partitioned",
    "PileUpError",
    "Predictive",
    "Reversible",
    "Solution",
    "SolveError",
    "Solver",
    "Status",
    "StepUnderflowError",
    "StiffnessWarning",
    "Terms",
    "gradient_report",
    "nn",
    "solve",
]
