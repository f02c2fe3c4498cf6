"""Recurrent models of series at irregular times."""

from .gru_delta import GRUD, GRUDelta
from .gru_ode_bayes import GRUODEBayes
from .ode_rnn import ODERNN
from .recurrence import Recurrence

__all__ = ["GRUD", "ODERNN", "GRUDelta", "GRUODEBayes", "Recurrence"]
