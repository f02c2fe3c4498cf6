"""Methods by name."""

from . import bosh3, dopri5, dopri8, euler, heun, midpoint, ralston, rk4, tsit5
from .base import Method, Step
from .explicit import ExplicitRK
from .tableau import Tableau

METHODS: dict[str, Method] = {
    method.name: method
    for method in map(
        ExplicitRK,
        (
            euler.TABLEAU,
            midpoint.TABLEAU,
            heun.TABLEAU,
            ralston.TABLEAU,
            bosh3.TABLEAU,
            rk4.RK4,
            rk4.RK4_38,
            dopri5.TABLEAU,
            tsit5.TABLEAU,
            dopri8.TABLEAU,
        ),
    )
}

__all__ = ["METHODS", "ExplicitRK", "Method", "Step", "Tableau"]
