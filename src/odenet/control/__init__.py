"""Step-size control: constant steps, a grid, PID and predictive (Gustafsson's) control; the first step; stop times."""

from .controller import Attempt, Controller, ControllerState, Decision
from .error_control import ErrorControl
from .fixed_steps import ConstantStep, Grid
from .pid import PID
from .predictive import Predictive

__all__ = [
    "PID",
    "Attempt",
    "ConstantStep",
    "Controller",
    "ControllerState",
    "Decision",
    "ErrorControl",
    "Grid",
    "Predictive",
]
