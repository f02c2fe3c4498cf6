"""Step-size control: constant steps, a grid, PID, predictive control, and the first step."""

from .base import Controller
from .fixed import ConstantStep, Grid
from .pid import PID
from .predictive import Predictive

__all__ = ["PID", "ConstantStep", "Controller", "Grid", "Predictive"]
