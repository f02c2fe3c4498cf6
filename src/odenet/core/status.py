"""Status codes of solves and of step attempts."""

from __future__ import annotations

from enum import Enum, IntEnum


class Status(IntEnum):
    """Status of a solve; per sample an integer code in a (B,) tensor."""

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
    """Status of the nonlinear equations of a step attempt; per sample an integer code in a (B,) tensor."""

    OK = 0
    NONLINEAR_FAILED = 1
    SINGULAR = 2
    NON_FINITE = 3

    __str__ = Enum.__str__
