"""Ways to differentiate a solve."""

from .adjoint import Adjoint
from .backprop import Backprop
from .base import Gradient
from .discrete import Discrete

GRADIENTS: dict[str, type[Gradient]] = {"discrete": Discrete, "backprop": Backprop, "adjoint": Adjoint}

__all__ = ["GRADIENTS", "Adjoint", "Backprop", "Discrete", "Gradient"]
