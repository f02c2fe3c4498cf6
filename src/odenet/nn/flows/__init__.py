"""Continuous normalizing flows and flow matching: the models, and the parts that they are put together from.

cnf: densities. traces, jacobian_products: the trace of the Jacobian. regularisers. normalisation: between blocks.
dynamics: what is solved. base, batches: distributions and shapes. flow_distribution: PyTorch's interfaces.
flow_matching: training without solves. couplings, transport: which noise goes with which data. velocity: guidance and
other paths. samplers: methods by name, times of steps. Paths are in `odenet.core.affine_paths`.
"""

from ...core.affine_paths import VP, AffinePath, CondOT, Cosine, LinearVP, Polynomial
from .cnf import CNF
from .couplings import OT, Coupling, Independent, Sinkhorn
from .flow_distribution import FlowDistribution, FlowTransform
from .flow_matching import FlowMatching, PathSample
from .regularisers import Frobenius, Kinetic, Regulariser, TaylorDerivative
from .samplers import flow_grid
from .traces import Divergence, ExactTrace, Hutchinson, HutchPlusPlus, Trace

__all__ = [
    "CNF",
    "OT",
    "VP",
    "AffinePath",
    "CondOT",
    "Cosine",
    "Coupling",
    "Divergence",
    "ExactTrace",
    "FlowDistribution",
    "FlowMatching",
    "FlowTransform",
    "Frobenius",
    "HutchPlusPlus",
    "Hutchinson",
    "Independent",
    "Kinetic",
    "LinearVP",
    "PathSample",
    "Polynomial",
    "Regulariser",
    "Sinkhorn",
    "TaylorDerivative",
    "Trace",
    "flow_grid",
]
