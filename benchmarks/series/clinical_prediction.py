"""Death within five years, from the laboratory values of a patient up to a landmark."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from ..shared.subprocesses import call_each_in_subprocess
from ..shared.tables import NONE, Settings, csv_text, markdown_table, page_head
from .clinical_baselines import BASELINES
from .clinical_data import Cohort, load, parts, prepared
from .score_lines import mean_and_spread
from .series_models import build, present
from .series_training import Examples, Split, binary_loss, evaluate, train

REFERENCE = "logistic regression"
# seconds of the processor to train a model, splits, and patients of a batch
DATA = {"nafld": (25.0, 3, 128), "pbcseq": (5.0, 10, 32)}


@dataclass(frozen=True)
class Score:
    """How well deaths of the test part were predicted. expected: deaths expected for each that came to pass."""

    data: str
    model: str
    seed: int = 0
    auroc: float | None = None
    brier: float | None = None
    log_loss: float | None = None
    concordance: float | None = None
    expected: float | None = None
    iterations: int | None = None
    seconds: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Counts:
    """Patients of a cohort, their deaths within the horizon, those who left observation in it, and rows of a series."""

    patients: int
    deaths: int
    left: int
    rows: float


def measures(probability: Tensor, test: Cohort) -> dict[str, float]:
    """Scores of probabilities of death. All but the concordance are of those of whom the outcome is known."""
    concordance: Any = import_module("lifelines.utils").concordance_index
    area: Any = import_module("sklearn.metrics").roc_auc_score
    p = probability.double().clamp(1e-6, 1 - 1e-6)
    known = test.known
    dies, sure = test.dies[known].double(), p[known]
    return {
        "auroc": float(area(dies.numpy(), sure.numpy())),
        "brier": float((sure - dies).square().mean()),
        "log_loss": float(torch.nn.functional.binary_cross_entropy(sure, dies)),
        "concordance": float(concordance(test.time.numpy(), -p.numpy(), test.dead.numpy())),
        "expected": float(sure.sum() / dies.sum()),
    }


def predict(
    model: str, split: Sequence[Cohort], seconds: float, batch: int, seed: int
) -> tuple[Tensor, dict[str, Any]]:
    """Probabilities of death of the test part by a model trained on those of whom the outcome is known."""
    known = [part[part.known] for part in split]
    examples = Split(*(Examples(part.series, part.dies) for part in known))
    series = split[0].series
    torch.manual_seed(seed)
    made = build(model, series.num_channels, 1, 0 if series.static is None else series.static.shape[1])
    fit = train(made, examples, binary_loss, seed, min(batch, len(known[0])), seconds=seconds)
    logit = evaluate(made, Examples(split[2].series, split[2].dies))[:, 0]
    return logit.sigmoid(), {"iterations": fit.iterations, "seconds": fit.seconds}


def score(name: str, model: str, seeds: int, quick: bool) -> list[dict[str, Any]]:
    """Scores of a model, one for each split."""
    whole = load(name)
    if quick:
        whole = whole[torch.arange(min(len(whole), 400))]
    seconds, _, batch = DATA[name]
    found = []
    for seed in range(seeds):
        split = [whole[index] for index in parts(len(whole), seed)]
        split = [prepared(part, split[0]) for part in split]
        start, cost = time.process_time(), {}
        if model in BASELINES:
            probability = BASELINES[model](*split)
            cost["seconds"] = time.process_time() - start
        else:
            probability, cost = predict(model, split, 0.5 if quick else seconds, batch, seed)
        found.append({"seed": seed, **measures(probability, split[2]), **cost})
    return found


def sizes(name: str) -> dict[str, Any]:
    """The fields of `Counts`."""
    whole = load(name)
    rows = float(whole.series.length.double().mean())
    return asdict(Counts(len(whole), int(whole.dies.sum()), int((~whole.known).sum()), rows))


def measure(quick: bool) -> list[Score]:
    jobs = [(n, m, 1 if quick else seeds, quick) for n, (_, seeds, _) in DATA.items() for m in (*BASELINES, *present())]
    found = call_each_in_subprocess(score, jobs, title="clinical")
    scores: list[Score] = []
    for (name, model, *_), (values, note) in zip(jobs, found, strict=True):
        scores += [Score(name, model, **value) for value in values or ()]
        scores += [Score(name, model, note=note)] * bool(note)
    return scores


def _line(rows: Sequence[Score], reference: dict[int, float]) -> list[str]:
    """reference: the AUROC of the logistic regression, by seed."""
    more = [r.auroc - reference[r.seed] for r in rows if r.auroc is not None and r.seed in reference]
    columns = ("concordance", "brier", "log_loss", "expected")
    cells = [mean_and_spread([getattr(r, c) for r in rows], ".2f" if c == "expected" else ".3f") for c in columns]
    cells = [mean_and_spread([r.auroc for r in rows], ".3f"), mean_and_spread(more, "+.3f"), *cells]
    iterations = [r.iterations for r in rows if r.iterations is not None]
    steps = f"{sum(iterations) // len(iterations):,}" if iterations else NONE
    return [rows[0].model, *cells, mean_and_spread([r.seconds for r in rows], ".1f"), steps, rows[0].note]


HOW = """\
Values up to day 365 from the index date say who dies in the five years after it. Cohort: patients under observation at
day 365 who have a value before it. Those who leave observation alive within the five years (in pbcseq also by a
transplant) are not in the classification, neither to train nor to test. Deaths are more frequent without them, so the
probabilities are too high for the whole cohort. Cox regression is fitted to all, and so its probabilities are those of
all: fewer deaths are expected than come to pass among those whose outcome is known. Patients are split 60 : 20 : 20,
anew for each seed; ± is the standard deviation over the seeds, which share patients. Difference: of the AUROC from
that of the logistic regression on the same split. AUROC, Brier score, log-loss and expected (sum of the probabilities,
per death) are of the test patients whose outcome is known; concordance is Harrell's, of all test patients by their
predicted risk. Values are normal scores, by rank among the training values of the test.

Baselines see the static features, and last value, mean and number of the values of each test; their penalty, or the
number of trees, is chosen by the log-loss of the validation part. Models of series see the values at their days, and
the static features; hidden size 32; each trains for the same seconds of one thread (Adam, 3e-3 falling to 0) and keeps
the weights that were best on the validation part in twenty looks. No weights for the rarer class."""
SOURCES = {
    "nafld": "Tests: FIB-4, HDL cholesterol, systolic pressure, smoking. In this copy of the data `chol` has the "
    "values of `hdl`, and `dbp` those of `sbp`; both are left out. Static: age, sex, body mass index.",
    "pbcseq": "Twelve measurements of each visit. Static: age, sex, treatment.",
}


def page(scores: Sequence[Score], counts: dict[str, Counts], settings: Settings) -> str:
    text = [page_head("Death within five years from laboratory values", settings), f"{HOW}\n"]
    head = [
        "model",
        "AUROC",
        "difference",
        "concordance",
        "Brier",
        "log-loss",
        "expected",
        "seconds",
        "iterations",
        "note",
    ]
    for name in dict.fromkeys(s.data for s in scores):
        rows = [s for s in scores if s.data == name]
        c, (seconds, *_) = counts.get(name), DATA[name]
        about = (
            f" {c.patients:,} patients, {c.rows:.1f} days with values each; {c.deaths:,} deaths; {c.left:,} left."
            if c
            else ""
        )
        seeds = len({s.seed for s in rows if s.auroc is not None})
        about = f"{SOURCES[name]}{about} {seeds} splits; {seconds:g} s for each model."
        reference = {s.seed: s.auroc for s in rows if s.model == REFERENCE and s.auroc is not None}
        models = dict.fromkeys(s.model for s in rows)
        lines = [_line([s for s in rows if s.model == model], reference) for model in models]
        text.append(f"## {name}\n\n{about}\n\n{markdown_table(head, lines)}")
    return "\n".join(text)


def run(settings: Settings) -> list[tuple[str, str | bytes]]:
    """Measure, and return the name and the content of each file."""
    scores = measure(settings.quick)
    counted = call_each_in_subprocess(sizes, [(name,) for name in DATA])
    counts = {name: Counts(**value) for name, (value, _) in zip(DATA, counted, strict=True) if value}
    table = csv_text(tuple(Score.__dataclass_fields__), [list(asdict(s).values()) for s in scores])
    return [("series_clinical.csv", table), ("series_clinical.md", page(scores, counts, settings))]
