"""Ways to differentiate a solve."""

from .adjoint import Adjoint
from .backprop import Backprop
from .base import Gradient
from .continuous import ContinuousAdjoint
from .discrete import Discrete
from .forward import Forward
from .gauss import GaussAdjoint
from .reversible import Reversible

_ALL = (Discrete, Backprop, Adjoint, GaussAdjoint, Reversible, Forward)

GRADIENTS: dict[str, type[Gradient]] = {gradient.name: gradient for gradient in _ALL}

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
