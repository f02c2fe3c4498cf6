"""Step-size control: constant steps, a grid, PID and predictive control; the first step; stop times."""

from .controller import Controller
from .fixed_steps import ConstantStep, Grid
from .pid import PID
from .predictive import Predictive

__all__ = ["PID", "ConstantStep", "Controller", "Grid", "Predictive"]
