"""Classes of series of which a part of the rows is dropped: JapaneseVowels and BasicMotions of the UEA archive."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from odenet.series import Series
from odenet.series.ts_files import read_ts

from ..shared.errors import NotApplicableError
from ..shared.subprocesses import call_each_in_subprocess
from ..shared.tables import Settings, csv_text, markdown_table, page_head
from .score_lines import mean_and_spread
from .series_models import build, present
from .series_training import Examples, Split, class_loss, evaluate, train

DATA = ("JapaneseVowels", "BasicMotions")
DROPPED = (0.0, 0.3, 0.5, 0.7)
SEEDS, ITERATIONS = 5, 200
BASELINE = "logistic regression"


@dataclass(frozen=True)
class Accuracy:
    """The part of the test samples whose class was found. dropped: the part of the rows that is not given."""

    data: str
    model: str
    dropped: float | None = None
    seed: int = 0
    accuracy: float | None = None
    seconds: float | None = None
    note: str = ""


def load(name: str, folder: str) -> tuple[Examples, Examples, int]:
    """Samples to train and to test on, and the number of classes. folder: has the files, or a folder for each set."""
    parts: list[Examples] = []
    classes = 0
    for part in ("TRAIN", "TEST"):
        places = [Path(folder) / f"{name}_{part}.ts", Path(folder) / name / f"{name}_{part}.ts"]
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            raise NotApplicableError(f"no {places[0].name} in --data-dir {folder or '(not given)'}")
        series, labels, names = read_ts(path)
        parts.append(Examples(series, labels))
        classes = len(names)
    return parts[0], parts[1], classes


def split(train_part: Examples, test: Examples, dropped: float, seed: int) -> Split:
    """A fifth of the training samples to choose by, and all series without a part of their rows."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(train_part), generator=generator)
    val = round(0.2 * len(train_part))
    parts = (train_part[order[val:]], train_part[order[:val]], test)
    return Split(*(Examples(p.series.dropped(dropped, generator), p.target) for p in parts))


def moments(series: Series) -> Tensor:
    """Mean and deviation of each channel, (B, 2 C)."""
    count = series.mask.sum(1).clamp(min=1)
    mean = series.x.sum(1) / count
    square = torch.where(series.mask, series.x - mean[:, None], 0.0).square().sum(1) / count
    return torch.cat([mean, square.sqrt()], 1)


def regression(data: Split) -> Tensor:
    """Classes of the test part by a logistic regression on mean and deviation; its penalty by the validation part."""
    linear: Any = import_module("sklearn.linear_model")
    features = [moments(part.series) for part in data]
    mean, std = features[0].mean(0), features[0].std(0)
    x_train, x_val, x_test = (((x - mean) / std.clamp(min=1e-6)).double().numpy() for x in features)
    y_train, y_val = data.train.target.numpy(), data.val.target.numpy()
    made = [linear.LogisticRegression(C=c, max_iter=2000).fit(x_train, y_train) for c in (0.1, 1.0, 10.0)]
    best = max(made, key=lambda one: one.score(x_val, y_val))
    return torch.as_tensor(best.predict(x_test))


def score(
    name: str, model: str, rates: Sequence[float], seeds: int, iterations: int, folder: str
) -> list[dict[str, Any]]:
    """Accuracies of a model, one for each rate and seed."""
    train_part, test, classes = load(name, folder)
    found: list[dict[str, Any]] = []
    for dropped, seed in product(rates, range(seeds)):
        data = split(train_part, test, dropped, seed)
        cost: dict[str, Any] = {}
        if model == BASELINE:
            labels = regression(data)
        else:
            torch.manual_seed(seed)
            made = build(model, test.series.num_channels, classes)
            cost["seconds"] = train(
                made, data, class_loss, seed, min(32, len(data.train)), iterations=iterations
            ).seconds
            labels = evaluate(made, data.test).argmax(1)
        accuracy = float((labels == data.test.target).double().mean())
        found.append({"dropped": dropped, "seed": seed, "accuracy": accuracy, **cost})
    return found


def measure(quick: bool, folder: str) -> list[Accuracy]:
    seeds, count, rates, names = (1, 3, DROPPED[2:3], DATA[:1]) if quick else (SEEDS, ITERATIONS, DROPPED, DATA)
    jobs = [(name, model, rates, seeds, count, folder) for name in names for model in (BASELINE, *present())]
    results: list[Accuracy] = []
    for job, (values, note) in zip(jobs, call_each_in_subprocess(score, jobs, title="vowels"), strict=True):
        results += [Accuracy(*job[:2], **value) for value in values or ()]
        results += [Accuracy(*job[:2], note=note)] * bool(note)
    return results


HOW = f"""\
Accuracy on the official test part, of series of which a random part of the rows is dropped, in training and test alike.
± is the standard deviation over the seeds (weights, rows, validation part). A fifth of the official training part
chooses the weights: 54 and 8 samples. Each model takes {ITERATIONS} steps of Adam, of batches of 32; hidden size 32.
Seconds: for these, on one thread. The solves of `NeuralCDE` and `LogODE` take a midpoint step for each row or window.
Logistic regression sees mean and deviation of each channel, and no order."""


def page(results: Sequence[Accuracy], settings: Settings) -> str:
    text = [page_head("Classes of series with dropped rows", settings), f"{HOW}\n"]
    rates = sorted({r.dropped for r in results if r.dropped is not None})
    head = ["model", *(f"{100 * rate:.0f} % dropped" for rate in rates), "seconds", "note"]
    for name in dict.fromkeys(r.data for r in results):
        lines: list[list[str]] = []
        for model in dict.fromkeys(r.model for r in results):
            rows = [r for r in results if (r.data, r.model) == (name, model)]
            cells = [mean_and_spread([r.accuracy for r in rows if r.dropped == rate], ".3f") for rate in rates]
            notes = "; ".join(dict.fromkeys(r.note for r in rows if r.note))
            lines.append([model, *cells, mean_and_spread([r.seconds for r in rows], ".1f"), notes])
        text.append(f"## {name}\n\n{markdown_table(head, lines)}")
    return "\n".join(text)


def run(settings: Settings) -> list[tuple[str, str | bytes]]:
    """Measure, and return the name and the content of each file."""
    results = measure(settings.quick, settings.data_dir)
    table = csv_text(tuple(Accuracy.__dataclass_fields__), [list(asdict(r).values()) for r in results])
    return [("series_vowels.csv", table), ("series_vowels.md", page(results, settings))]
