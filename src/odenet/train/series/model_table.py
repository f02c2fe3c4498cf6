"""The models of `--model`: one line each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from ...nn import (
    GRUD,
    ODERNN,
    GRUDelta,
    GRUODEBayes,
    LastValue,
    LatentODE,
    LinearCDE,
    LogODE,
    MeanValue,
    MultiTimeAttention,
    NeuralCDE,
    SeriesTransformer,
)
from ..user_error import UserError
from .predictors import (
    BaselinePredictor,
    BayesPredictor,
    ClassPredictor,
    DirectPredictor,
    LatentPredictor,
    NumberPredictor,
    take_scales,
)
from .series_data import LABELLED, TIMED


@dataclass(frozen=True)
class Kind:
    """How a model is made and trained.

    model: the class. predictor: what makes values at times of it. solves: it takes options of `odenet.solve`. doubled:
    its output has a mean and a deviation. settings: those that are arguments of the class.
    """

    model: Any
    predictor: Callable[[Any], nn.Module] = DirectPredictor
    solves: bool = False
    doubled: bool = True
    settings: tuple[str, ...] = ("hidden",)


MODELS: dict[str, Kind] = {
    "latent-ode": Kind(LatentODE, LatentPredictor, True, False, ("hidden", "latent")),
    "ode-rnn": Kind(ODERNN, solves=True),
    "gru-ode-bayes": Kind(GRUODEBayes, BayesPredictor, True, False),
    "cde": Kind(NeuralCDE, solves=True),
    "log-ode": Kind(LogODE, solves=True),
    "linear-cde": Kind(LinearCDE),
    "gru-delta": Kind(GRUDelta),
    "gru-d": Kind(GRUD),
    "transformer": Kind(SeriesTransformer),
    "mtan": Kind(MultiTimeAttention),
}
BASELINES: dict[str, Any] = {"last-value": LastValue, "mean": MeanValue}


def known_models() -> list[str]:
    """The names of all."""
    return [*MODELS, *BASELINES]


def check_model(settings: Any) -> None:
    """Refuse a model that is not there or not for the task, and options that it does not have."""
    s = settings
    if s.model not in known_models():
        raise UserError(f"--model {s.model!r} is unknown. Known: {', '.join(known_models())}")
    if s.model in BASELINES and s.task not in TIMED:
        raise UserError(f"--model {s.model} is for --task {' and '.join(TIMED)}, not {s.task}: choose another")
    solves = s.model not in BASELINES and MODELS[s.model].solves
    if s.tolerance and not solves:
        raise UserError(f"--tolerance is for models with a solver, and {s.model} has none: leave it out")
    if not s.tolerance and (s.per_sample or s.method != type(s).method):
        raise UserError("--method and --per-sample need a --tolerance: without one a model takes even steps")


def build_predictor(settings: Any, info: Mapping[str, Any]) -> nn.Module:
    """The untrained network of a run, in the scales of its data."""
    s, channels, static = settings, len(info["channels"]), len(info["scales"]["static_mean"])
    if s.model in BASELINES:
        return build_baseline(s.model, info)
    kind = MODELS[s.model]
    options: dict[str, Any] = {"static": static, **{name: getattr(s, name) for name in kind.settings}}
    if kind.solves and s.tolerance:
        options |= {"rtol": s.tolerance, "atol": s.tolerance, "method": s.method}
        options |= {"per_sample": True} if s.per_sample else {}
    if s.task in LABELLED:
        options["out"] = len(info["classes"]) or 1
    elif kind.doubled:
        options["out"] = 2 * channels
    model = kind.model(channels, **options)
    take_scales(model.normalizer, info["scales"])
    if s.task == "classify":
        return ClassPredictor(model)
    return NumberPredictor(model, *info["target"]) if s.task == "regress" else kind.predictor(model)


def build_baseline(name: str, info: Mapping[str, Any]) -> BaselinePredictor:
    """In the scales of the data of a run."""
    baseline = BaselinePredictor(BASELINES[name](len(info["channels"]), static=len(info["scales"]["static_mean"])))
    take_scales(baseline.normalizer, info["scales"])
    return baseline
