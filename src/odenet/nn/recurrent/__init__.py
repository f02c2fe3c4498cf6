"""Recurrent models of series at irregular times."""

from .ode_rnn import ODERNN
from .recurrence import Recurrence

__all__ = ["ODERNN", "Recurrence"]
