"""Ways to differentiate a solve."""

from .adjoint import Adjoint
from .backprop import Backprop
from .continuous_adjoint import ContinuousAdjoint
from .discrete import Discrete
from .forward_mode import Forward
from .gauss_adjoint import GaussAdjoint
from .gradient import Gradient
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
