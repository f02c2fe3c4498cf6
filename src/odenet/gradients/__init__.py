"""Ways to differentiate a solve."""

from .adjoint import Adjoint
from .backprop import Backprop
from .base import Gradient
from .continuous import ContinuousAdjoint
from .discrete import Discrete
from .forward import Forward
from .gauss import GaussAdjoint
from .reversible import Reversible

GRADIENTS: dict[str, type[Gradient]] = {
    "discrete": Discrete,
    "backprop": Backprop,
    "adjoint": Adjoint,
    "gauss": GaussAdjoint,
    "reversible": Reversible,
    "forward": Forward,
}

__all__ = [
    "GRADIENTS",
    "Adjoint",
    "Backprop",
    "ContinuousAdjoint",
    "Discrete",
    "Forward",
    "GaussAdjoint",
    "Gradient",
    "Reversible",
]
