"""The data of the task `series`: all samples, their labels, and which are trained on, validated and tested with."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...series import Series
from ..user_error import UserError
from .archive import ARCHIVE, archive, ts_file
from .hopper import COUNT, hopper
from .series_table import layout_of, read_series
from .spirals import DIRECTIONS, WINDOW, spirals

LABELLED = ("classify", "regress")
TIMED = ("interpolate", "forecast")
FEWEST = 10  # samples of a file
FEWEST_OF_CLASS = 3  # one for each split


@dataclass(frozen=True)
class SeriesData:
    """All samples and their splits.

    series: all samples. labels: numbers of classes, or targets, (N,). classes: their names. splits: numbers of
    samples. truth: the series without noise and gaps, where it is known. window: the true rows that were seen; those
    behind are beyond. whole: a test of interpolation is on all rows of a series, not the hidden ones alone.
    """

    series: Series
    labels: Tensor | None
    classes: tuple[str, ...]
    splits: dict[str, Tensor]
    truth: Series | None = None
    window: int = 0
    whole: bool = False


def load_series(settings: Any) -> SeriesData:
    """The data of `--data`, all of which follow from the settings and the files."""
    s = settings
    if s.data == "spirals":
        found = _spirals(s)
    elif s.data == "hopper":
        found = _hopper(s)
    elif s.data in ARCHIVE:
        found = _archive(s)
    else:
        found = _file(Path(s.data), s)
    if s.task in LABELLED and found.labels is None:
        cure = "name them by --label" if Path(s.data).suffix not in ("", ".ts") else "take --task interpolate"
        raise UserError(f"--task {s.task}: {s.data} has no labels: {cure}")
    if s.task == "classify" and len(found.classes) < 2:
        raise UserError(f"--task classify: {s.data} has no classes, but numbers as labels: take --task regress")
    if s.task == "regress" and found.classes:
        raise UserError(f"--task regress: the labels of {s.data} are classes: take --task classify")
    if s.dropped:
        series = found.series.dropped(s.dropped, torch.Generator().manual_seed(s.seed))
        found = replace(found, series=series)
    return found


def summary(data: SeriesData, settings: Any) -> str:
    """What is trained on, in a line."""
    own = data.series
    splits = ", ".join(f"{len(part)} {name}" for name, part in data.splits.items())
    channels = ", ".join(own.channels or [str(c) for c in range(own.num_channels)])
    static = ", ".join(word.strip() for word in settings.static.split(",") if word.strip()) or "-"
    label = (settings.label or "label") if settings.task in LABELLED else "-"
    rows = f"of up to {int(own.length.max())} rows"
    return f"{len(own)} series ({splits}) {rows}; channels {channels}; static {static}; label {label}"


def _count(settings: Any, usual: int, quick: int) -> int:
    return settings.count or (quick if settings.quick else usual)


def _spirals(s: Any) -> SeriesData:
    if not 1 <= s.points <= WINDOW:
        raise UserError(f"--points must be from 1 to {WINDOW}; got {s.points}")
    count = _count(s, 1000, 60)
    seen, truth, direction = spirals(count, s.points, s.seed)
    return SeriesData(seen, direction, DIRECTIONS, _split(count, direction, s.seed), truth, WINDOW, whole=True)


def _hopper(s: Any) -> SeriesData:
    count = _count(s, COUNT, 60)
    return SeriesData(hopper(count, s.data_dir), None, (), _split(count, None, s.seed), whole=True)


def _archive(s: Any) -> SeriesData:
    (series, labels, classes), trained = archive(s.data, s.data_dir)
    assert labels is not None
    order = torch.randperm(trained, generator=torch.Generator().manual_seed(s.seed))
    val = _share(labels[:trained], order, 0.2, 0)
    train = order[~torch.isin(order, val)].sort().values
    test = torch.arange(trained, len(labels))
    if s.quick:
        train, val, test = train[:: max(1, len(train) // 40)], val[:20], test[:: max(1, len(test) // 20)]
    return SeriesData(series, labels, classes, {"train": train, "val": val, "test": test})


def _file(path: Path, s: Any) -> SeriesData:
    if path.suffix == "":
        known = ("spirals", "hopper", *ARCHIVE)
        raise UserError(f"--data {str(path)!r} is unknown. Known: {', '.join(known)}, FILE.csv, FILE.parquet, FILE.ts")
    if not path.is_file():
        raise UserError(f"{path} is not there: give a file .csv, .parquet or .ts")
    classes: tuple[str, ...] = ()
    labels: Tensor | None = None
    if path.suffix.lower() == ".ts":
        series, labels, classes = ts_file(path)
    else:
        series, given = read_series(path, layout_of(s))
        if s.task in LABELLED and (s.label or s.labels):
            labels, classes = _given_labels(path, given, series, s.task)
    series = series.select(series.mask.any(2))
    kept = series.length > 0
    if not bool(kept.all()):
        raise UserError(f"{path}: series {_name(series, int((~kept).nonzero()[0]))} has no value: leave it out")
    if len(series) < FEWEST:
        raise UserError(f"{path} has {len(series)} series: a training needs at least {FEWEST}")
    return SeriesData(series, labels, classes, _split(len(series), labels if classes else None, s.seed))


def _given_labels(path: Path, given: list[Any], series: Series, task: str) -> tuple[Tensor, tuple[str, ...]]:
    if absent := [i for i, label in enumerate(given) if label is None]:
        raise UserError(f"{path}: series {_name(series, absent[0])} has no label, one of {len(absent)}: leave it out")
    if task == "classify":
        counts = Counter(map(str, given))
        classes = tuple(sorted(counts))
        if len(classes) == 1:
            raise UserError(f"{path}: the label of every series is {classes[0]!r}, and a classifier needs two classes")
        if rare := [name for name in classes if counts[name] < FEWEST_OF_CLASS]:
            raise UserError(
                f"{path}: the class {rare[0]!r} has {counts[rare[0]]} series, and a class needs {FEWEST_OF_CLASS}: "
                "merge classes, or leave it out; for numbers take --task regress"
            )
        return torch.tensor([classes.index(str(label)) for label in given]), classes
    try:
        targets = [float(label) for label in given]
    except (TypeError, ValueError):
        bad = next(label for label in given if not _is_number(label))
        raise UserError(f"{path}: the label {str(bad)[:40]!r} is no number: take --task classify") from None
    if not all(map(math.isfinite, targets)):
        raise UserError(f"{path}: a label is not finite: leave such series out")
    return torch.tensor(targets, dtype=torch.float32), ()


def _is_number(label: Any) -> bool:
    try:
        float(label)
    except (TypeError, ValueError):
        return False
    return True


def _name(series: Series, i: int) -> str:
    return repr(series.ids[i]) if series.ids is not None else str(i)


def _split(count: int, classes: Tensor | None, seed: int) -> dict[str, Tensor]:
    """A tenth of the samples for validation and one for the test; of each class alike."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    labels = torch.zeros(count, dtype=torch.int64) if classes is None else classes
    parts = {name: _share(labels, order, 0.1, place) for place, name in enumerate(("val", "test"))}
    return {"train": order[~torch.isin(order, torch.cat(list(parts.values())))].sort().values, **parts}


def _share(classes: Tensor, order: Tensor, share: float, place: int) -> Tensor:
    """A share of the samples of each class, one at least; place 0: those that are first in `order`, 1: those after."""
    parts: list[Tensor] = []
    for number in classes.unique().tolist():
        own = order[classes[order] == number]
        size = max(1, round(share * len(own)))
        parts.append(own[place * size : (place + 1) * size])
    return torch.cat(parts).sort().values
