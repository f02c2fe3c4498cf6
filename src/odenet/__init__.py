"""odenet: neural ordinary differential equations in PyTorch."""

from . import nn
from .control import PID, ConstantStep
from .core.status import Status
from .errors import BlowUpError, MaxStepsError, NonFiniteError, SolveError, StepUnderflowError
from .gradients import Adjoint, Backprop, Discrete, Forward, GaussAdjoint, Reversible
from .report import GradientReport, GradientRow, gradient_report
from .solution import Solution
from .solve import solve

__version__ = "0.1.0"

__all__ = [
    "PID",
    "Adjoint",
    "Backprop",
    "BlowUpError",
    "ConstantStep",
    "Discrete",
    "Forward",
    "GaussAdjoint",
    "GradientReport",
    "GradientRow",
    "MaxStepsError",
    "NonFiniteError",
    "Reversible",
    "Solution",
    "SolveError",
    "Status",
    "StepUnderflowError",
    "gradient_report",
    "nn",
    "solve",
]
