"""Vector fields, layers and models.

Parts of flows are in `odenet.nn.flows`; those of models of series in `odenet.nn.recurrent`, `controlled`, `latent` and
`baselines`.
"""

from . import baselines, controlled, flows, latent, recurrent
from .adapted_field import adapt
from .baselines import LastValue, MeanValue, MultiTimeAttention, SeriesTransformer
from .classifier import Classifier, classifier
from .controlled import LinearCDE, LogODE, NeuralCDE
from .fields import ConcatSquashField, ConvField, MLPField
from .flows import CNF, FlowMatching
from .latent import LatentODE
from .layer import Augmented, NeuralODE
from .recurrent import GRUD, ODERNN, GRUDelta, GRUODEBayes

__all__ = [
    "CNF",
    "GRUD",
    "ODERNN",
    "Augmented",
    "Classifier",
    "ConcatSquashField",
    "ConvField",
    "FlowMatching",
    "GRUDelta",
    "GRUODEBayes",
    "LastValue",
    "LatentODE",
    "LinearCDE",
    "LogODE",
    "MLPField",
    "MeanValue",
    "MultiTimeAttention",
    "NeuralCDE",
    "NeuralODE",
    "SeriesTransformer",
    "adapt",
    "baselines",
    "classifier",
    "controlled",
    "flows",
    "latent",
    "recurrent",
]
