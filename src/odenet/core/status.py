"""How a solve can end."""

from __future__ import annotations

from enum import Enum, IntEnum


class Status(IntEnum):
    """Status of a solve, or of one sample (as its integer code in a (B,) tensor)."""

    RUNNING = -1
    SUCCESS = 0
    MAX_STEPS = 1
    NON_FINITE = 2
    BLOW_UP = 3
    STEP_UNDERFLOW = 4
    EVENT = 5
    PILE_UP = 6
    NONLINEAR_FAILED = 7

    __str__ = Enum.__str__


class StepStatus(IntEnum):
    """What became of the equations of one attempted step; by sample, as an integer code in a tensor."""

    OK = 0
    NONLINEAR_FAILED = 1
    SINGULAR = 2
    NON_FINITE = 3

    __str__ = Enum.__str__
