"""Vector fields, layers and models."""

from .classifier import Classifier, classifier
from .fields import ConcatSquashField, ConvField, MLPField
from .flows.cnf import CNF
from .layer import Augmented, NeuralODE

__all__ = ["CNF", "Augmented", "Classifier", "ConcatSquashField", "ConvField", "MLPField", "NeuralODE", "classifier"]
