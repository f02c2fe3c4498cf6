"""Controlled differential equations: models that a path through a series drives."""

from .cde_fields import CDEField, LowRankCDEField
from .controlled_model import ControlledModel
from .linear_cde import LinearCDE, LinearField
from .log_ode_model import BracketField, LogODE, log_signature_path
from .neural_cde import NeuralCDE

__all__ = [
    "BracketField",
    "CDEField",
    "ControlledModel",
    "LinearCDE",
    "LinearField",
    "LogODE",
    "LowRankCDEField",
    "NeuralCDE",
    "log_signature_path",
]
