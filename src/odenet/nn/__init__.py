"""Vector fields, layers and models. The parts that models are put together from are in the packages below.

Models of series are imported when they are first used: `import odenet` is not to wait for them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import flows
from .adapted_field import adapt
from .classifier import Classifier, classifier
from .fields import ConcatSquashField, ConvField, MLPField
from .flows import CNF, FlowMatching
from .layer import Augmented, NeuralODE

if TYPE_CHECKING:
    from . import baselines, controlled, latent, recurrent
    from .baselines import LastValue, MeanValue, MultiTimeAttention, SeriesTransformer
    from .controlled import LinearCDE, LogODE, NeuralCDE
    from .latent import LatentODE
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

_SERIES_MODELS = {
    "baselines": ("LastValue", "MeanValue", "MultiTimeAttention", "SeriesTransformer"),
    "controlled": ("LinearCDE", "LogODE", "NeuralCDE"),
    "latent": ("LatentODE",),
    "recurrent": ("GRUD", "ODERNN", "GRUDelta", "GRUODEBayes"),
}


def __getattr__(name: str) -> Any:
    for package, models in _SERIES_MODELS.items():
        if name == package or name in models:
            module = import_module(f".{package}", __name__)
            value = module if name == package else getattr(module, name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
