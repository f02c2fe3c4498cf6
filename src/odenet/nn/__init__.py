"""Vector fields, layers and models. The parts that flows are put together from are in `odenet.nn.flows`."""

from . import flows
from .adapted_field import adapt
from .classifier import Classifier, classifier
from .fields import ConcatSquashField, ConvField, MLPField
from .flows import CNF, FlowMatching
from .latent import LatentODE
from .layer import Augmented, NeuralODE

__all__ = [
    "CNF",
    "Augmented",
    "Classifier",
    "ConcatSquashField",
    "ConvField",
    "FlowMatching",
    "LatentODE",
    "MLPField",
    "NeuralODE",
    "adapt",
    "classifier",
    "flows",
]
