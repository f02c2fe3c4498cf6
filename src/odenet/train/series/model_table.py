"""The models of `--model`: one line each."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..user_error import UserError
from .baseline_values import BASELINES
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

    path: MODULE:CLASS, a subclass of `SeriesModel`. tasks: those that it is for. predictor: what makes values at
    times of it. solves: it takes options of `odenet.solve`. doubled: its output has a mean and a deviation. settings:
    those that are arguments of the class. A class that is not there makes the model unknown.
    """

    path: str
    tasks: tuple[str, ...] = (*LABELLED, *TIMED)
    predictor: Callable[[Any], nn.Module] = DirectPredictor
    solves: bool = False
    doubled: bool = True
    settings: tuple[str, ...] = ("hidden",)


MODELS: dict[str, Kind] = {
    "latent-ode": Kind("odenet.nn:LatentODE", TIMED, LatentPredictor, True, False, ("hidden", "latent")),
    "ode-rnn": Kind("odenet.nn.recurrent:ODERNN", solves=True),
    "gru-ode-bayes": Kind("odenet.nn:GRUODEBayes", TIMED, BayesPredictor, True, False),
    "cde": Kind("odenet.nn:NeuralCDE", solves=True),
    "log-ode": Kind("odenet.nn:LogODE", solves=True),
    "linear-cde": Kind("odenet.nn:LinearCDE"),
    "gru-delta": Kind("odenet.nn:GRUDelta"),
    "gru-d": Kind("odenet.nn:GRUD"),
    "transformer": Kind("odenet.nn:SeriesTransformer"),
    "mtan": Kind("odenet.nn:MultiTimeAttention"),
}


def known_models() -> list[str]:
    """The names of those that this version has."""
    return [*(name for name, kind in MODELS.items() if _class(kind) is not None), *BASELINES]


def check_model(settings: Any) -> None:
    """Refuse a model that is not there or not for the task, and options that it does not have."""
    s = settings
    if s.model not in known_models():
        raise UserError(f"--model {s.model!r} is unknown. Known: {', '.join(known_models())}")
    tasks = TIMED if s.model in BASELINES else MODELS[s.model].tasks
    if s.task not in tasks:
        raise UserError(f"--model {s.model} is for --task {' and '.join(tasks)}, not {s.task}: choose another")
    solves = s.model not in BASELINES and MODELS[s.model].solves
    if s.tolerance and not solves:
        raise UserError(f"--tolerance is for models with a solver, and {s.model} has none: leave it out")
    if not s.tolerance and (s.per_sample or s.method != type(s).method):
        raise UserError("--method and --per-sample need a --tolerance: without one a model takes even steps")


def build_predictor(settings: Any, info: Mapping[str, Any]) -> nn.Module:
    """The untrained network of a run, in the scales of its data."""
    s, channels, static = settings, len(info["channels"]), len(info["scales"]["static_mean"])
    if s.model in BASELINES:
        baseline = BaselinePredictor(s.model, channels, static)
        take_scales(baseline.normalizer, info["scales"])
        return baseline
    kind = MODELS[s.model]
    made: Any = _class(kind)
    options: dict[str, Any] = {"static": static, **{name: getattr(s, name) for name in kind.settings}}
    if kind.solves and s.tolerance:
        options |= {"rtol": s.tolerance, "atol": s.tolerance, "method": s.method}
        options |= {"per_sample": True} if s.per_sample else {}
    if s.task in LABELLED:
        options["out"] = len(info["classes"]) or 1
    elif kind.doubled:
        options["out"] = 2 * channels
    model = made(channels, **options)
    take_scales(model.normalizer, info["scales"])
    if s.task == "classify":
        return ClassPredictor(model)
    return NumberPredictor(model, *info["target"]) if s.task == "regress" else kind.predictor(model)


def _class(kind: Kind) -> Any:
    """None where this version does not have it."""
    module, name = kind.path.split(":")
    return getattr(importlib.import_module(module), name, None)
