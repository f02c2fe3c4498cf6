"""Step-size control: constant steps, a grid, PID, and the first step."""

from .base import Controller
from .fixed import ConstantStep, Grid
from .pid import PID

__all__ = ["PID", "ConstantStep", "Controller", "Grid"]
