"""The models of series that the benchmark `series` compares, by name."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from odenet.nn.series_model import SeriesModel

from ..shared.errors import NotApplicableError

HIDDEN = 32
# the options of each model besides channels, hidden, out and static; where accuracy is compared, even steps will do
MODELS: dict[str, dict[str, Any]] = {
    "ODERNN": {},
    "GRUODEBayes": {},
    "NeuralCDE": {"method": "midpoint", "step": 1.0},
    "LogODE": {"method": "midpoint", "step": 1.0},
    "LinearCDE": {},
    "LatentODE": {"latent": 16},
    "GRUDelta": {},
    "GRUD": {},
    "SeriesTransformer": {},
    "MultiTimeAttention": {},
}
# further options, in the tables that say so
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    'LatentODE, encoder="gru"': ("LatentODE", {"latent": 16, "encoder": "gru"}),
}
_PLACES = ("odenet.nn", "odenet.nn.recurrent")


def find(name: str) -> Any:
    """The class of this name, or None."""
    for place in _PLACES:
        if (found := getattr(import_module(place), name, None)) is not None:
            return found
    return None


def present() -> list[str]:
    """The names of the models that this version has."""
    return [name for name in MODELS if find(name) is not None]


def build(name: str, channels: int, out: int, static: int = 0, hidden: int | None = None) -> SeriesModel:
    """A model of the tables, with weights by PyTorch's generator."""
    kind, options = VARIANTS.get(name) or (name, MODELS.get(name, {}))
    model = find(kind)
    if model is None:
        raise NotApplicableError(f"odenet.nn has no {kind}")
    return model(channels, hidden=hidden or HIDDEN, out=out, static=static, **options)
