"""Step-size control: constant steps, PID, and the first step."""

from .base import Controller
from .fixed import ConstantStep
from .pid import PID

__all__ = ["PID", "ConstantStep", "Controller"]
