"""Vector fields, layers and models."""

from ..core.affine_paths import VP, AffinePath, CondOT, Cosine, LinearVP, Polynomial
from .adapted_field import adapt
from .classifier import Classifier, classifier
from .fields import ConcatSquashField, ConvField, MLPField
from .flows.cnf import CNF
from .flows.couplings import OT, Coupling, Independent, Sinkhorn
from .flows.flow_matching import FlowMatching
from .flows.samplers import flow_grid
from .layer import Augmented, NeuralODE

__all__ = [
    "CNF",
    "OT",
    "VP",
    "AffinePath",
    "Augmented",
    "Classifier",
    "ConcatSquashField",
    "CondOT",
    "ConvField",
    "Cosine",
    "Coupling",
    "FlowMatching",
    "Independent",
    "LinearVP",
    "MLPField",
    "NeuralODE",
    "Polynomial",
    "Sinkhorn",
    "adapt",
    "classifier",
    "flow_grid",
]
