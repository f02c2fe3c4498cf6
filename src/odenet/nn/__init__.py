"""Vector fields, layers and models."""

from .fields import ConvField, MLPField
from .layer import Augmented, NeuralODE

__all__ = ["Augmented", "ConvField", "MLPField", "NeuralODE"]
