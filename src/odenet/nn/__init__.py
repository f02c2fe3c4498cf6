"""Vector fields, layers and models."""

from .classifier import Classifier, classifier
from .fields import ConvField, MLPField
from .layer import Augmented, NeuralODE

__all__ = ["Augmented", "Classifier", "ConvField", "MLPField", "NeuralODE", "classifier"]
