"""What is usual for such data: regressions on a few numbers of each patient, and boosted trees."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from odenet.series import Series
from odenet.series.filling import forward_fill

from .clinical_data import HORIZON, Cohort

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)


def summary(series: Series) -> Tensor:
    """Static features, and the last value, the mean and the logarithm of the count of each test; (B, F).

    Values are normal scores, so 0 stands for a test without a value.
    """
    count = series.mask.sum(1)
    mean = series.x.sum(1) / count.clamp(min=1)
    last = forward_fill(series.x, series.mask)[:, -1]
    parts = [last, mean, count.to(mean).log1p()]
    return torch.cat(parts if series.static is None else [series.static, *parts], 1)


def static_only(series: Series) -> Tensor:
    assert series.static is not None
    return series.static


def _standard(train: Tensor, *others: Tensor) -> list[Any]:
    """With the mean and deviation of train, as NumPy arrays; constant columns are 0."""
    mean, std = train.mean(0), train.std(0)
    return [((x - mean) / torch.where(std > 0, std, 1.0)).double().numpy() for x in (train, *others)]


def _log_loss(dies: Tensor, probability: Any) -> float:
    p = torch.as_tensor(probability, dtype=torch.float64).clamp(1e-6, 1 - 1e-6)
    return float(torch.nn.functional.binary_cross_entropy(p, dies.double()))


# from the patients to train on, to choose by and to test on: probabilities of death within the horizon
Baseline = Callable[[Cohort, Cohort, Cohort], Tensor]


def _logistic(features: Callable[[Series], Tensor], train: Cohort, val: Cohort, test: Cohort) -> Tensor:
    linear: Any = import_module("sklearn.linear_model")
    train, val = train[train.known], val[val.known]
    x_train, x_val, x_test = _standard(*(features(part.series) for part in (train, val, test)))
    best: tuple[float, Any] | None = None
    for penalty in PENALTIES:
        made = linear.LogisticRegression(C=1 / (penalty * len(train)), max_iter=1000).fit(x_train, train.dies.numpy())
        value = _log_loss(val.dies, made.predict_proba(x_val)[:, 1])
        if best is None or value < best[0]:
            best = value, made
    assert best is not None
    return torch.as_tensor(best[1].predict_proba(x_test)[:, 1])


def logistic(train: Cohort, val: Cohort, test: Cohort) -> Tensor:
    return _logistic(summary, train, val, test)


def logistic_static(train: Cohort, val: Cohort, test: Cohort) -> Tensor:
    return _logistic(static_only, train, val, test)


def boosting(train: Cohort, val: Cohort, test: Cohort) -> Tensor:
    """Boosted trees, as many as are best for the validation part."""
    ensemble: Any = import_module("sklearn.ensemble")
    train, val = train[train.known], val[val.known]
    x_train, x_val, x_test = (summary(part.series).double().numpy() for part in (train, val, test))
    made = ensemble.HistGradientBoostingClassifier(
        learning_rate=0.05, max_leaf_nodes=8, max_iter=300, early_stopping=False, random_state=0
    )
    made.fit(x_train, train.dies.numpy())
    losses = [_log_loss(val.dies, p[:, 1]) for p in made.staged_predict_proba(x_val)]
    best = losses.index(min(losses))
    chosen = next(p for i, p in enumerate(made.staged_predict_proba(x_test)) if i == best)
    return torch.as_tensor(chosen[:, 1])


def cox(train: Cohort, val: Cohort, test: Cohort) -> Tensor:
    """Cox's proportional hazards by lifelines, on all patients, who count as long as they are under observation."""
    pandas: Any = import_module("pandas")
    fitter: Any = import_module("lifelines").CoxPHFitter
    kept = summary(train.series).std(0) > 0
    x_train, x_val, x_test = _standard(*(summary(part.series)[:, kept] for part in (train, val, test)))
    table = pandas.DataFrame(x_train).assign(time=train.time.numpy(), dead=train.dead.numpy())
    best: tuple[float, Any] | None = None
    for penalty in PENALTIES:
        made = fitter(penalizer=penalty).fit(table, "time", "dead")
        value = _log_loss(val[val.known].dies, _dies_within(made, x_val[val.known.numpy()]))
        if best is None or value < best[0]:
            best = value, made
    assert best is not None
    return _dies_within(best[1], x_test)


def _dies_within(made: Any, x: Any) -> Tensor:
    pandas: Any = import_module("pandas")
    alive = made.predict_survival_function(pandas.DataFrame(x), times=[HORIZON])
    return 1 - torch.as_tensor(alive.to_numpy()[0])


BASELINES: dict[str, Baseline] = {
    "logistic regression without values": logistic_static,
    "logistic regression": logistic,
    "Cox regression": cox,
    "boosted trees": boosting,
}
