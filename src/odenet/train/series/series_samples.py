"""What a model is given of each sample, and what it has to say: tensors of equal shapes for a DataLoader."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ...series import Series
from ..user_error import UserError
from .series_data import LABELLED, SeriesData

SPLITS = ("train", "val", "test")
_FIELDS = ("t", "x", "mask", "length")


class SeriesSamples(Dataset[dict[str, Tensor]]):
    """Samples as dicts of tensors."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors["length"])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: tensor[index] for name, tensor in self.tensors.items()}


def packed(given: Series, **parts: Series | Tensor | None) -> dict[str, Tensor]:
    """The fields of the series by their names, those of others behind the name of the part."""
    tensors = {name: getattr(given, name) for name in _FIELDS}
    if given.static is not None:
        tensors["static"] = given.static
    for part, value in parts.items():
        if isinstance(value, Series):
            tensors |= {f"{part}_{name}": getattr(value, name) for name in _FIELDS}
        elif value is not None:
            tensors[part] = value
    return tensors


def unpacked(batch: Mapping[str, Tensor], part: str = "") -> Series | None:
    """A series of a batch, without columns of padding, but of one at least; None where there is none of this name."""
    prefix = f"{part}_" if part else ""
    if f"{prefix}t" not in batch:
        return None
    t, x, mask, length = (batch[prefix + name] for name in _FIELDS)
    return Series(t, x, mask, length, batch.get("static")).trimmed().padded(1)


def given_of(batch: Mapping[str, Tensor]) -> Series:
    """The series that the model is given."""
    series = unpacked(batch)
    assert series is not None
    return series


def samples(data: SeriesData, split: str, settings: Any, epoch: int) -> SeriesSamples:
    """The samples of a split. Which rows are hidden follows from the seed, and in training from the epoch."""
    chosen = data.splits[split]
    series = data.series[chosen]
    if settings.task in LABELLED:
        assert data.labels is not None
        return SeriesSamples(packed(series, label=data.labels[chosen]))
    number = (settings.seed * len(SPLITS) + SPLITS.index(split)) * 100_003 + (epoch if split == "train" else 0)
    generator = torch.Generator().manual_seed(number)
    truth = data.truth[chosen] if data.truth is not None and split == "test" else None
    window, beyond = (None, None) if truth is None else _seen(truth, data.window)
    if settings.task == "interpolate":
        keep = _drawn(series, settings.observed, generator, hides=not data.whole)
        given = series.select(keep) if window is None else series
        target = series if data.whole else series.select(series.rows & ~keep)
    else:
        cut = cuts(series, settings.horizon)
        past = series.before(cut)
        given = past.select(_drawn(past, settings.observed, generator, hides=False))
        target = series.after(cut)
        window = None if window is None else window.after(cut)
    return SeriesSamples(packed(given, target=target if window is None else window, beyond=beyond))


def _drawn(series: Series, share: float, generator: torch.Generator, hides: bool) -> Tensor:
    """Which rows are given, (B, T): a random share of each sample's, at least one. hides: and at most all but one."""
    draw = torch.rand(series.t.shape, generator=generator, dtype=torch.float64)
    rank = torch.where(series.rows, draw, 2.0).argsort(1).argsort(1)
    most = (series.length - int(hides)).clamp(min=1)
    count = (share * series.length).round().long().clamp(min=1).minimum(most)
    return series.rows & (rank < count[:, None])


def cuts(series: Series, horizon: float) -> Tensor:
    """The time of each sample from which its rows are to be forecast, (B,).

    horizon: its distance from the last row; 0: half of the series.
    """
    first, last = series.t[:, 0], series.t[:, -1]  # behind the last row its time is repeated
    # a row at the cut itself is given: whether it is there must not depend on rounding
    return (last - horizon if horizon else (first + last) / 2) + 1e-5 * (last - first)


def _seen(truth: Series, window: int) -> tuple[Series, Series]:
    """The rows of the window, and those beyond it."""
    inside = (torch.arange(truth.t.shape[1]) < window).expand(truth.t.shape)
    return truth.select(inside), truth.select(~inside)


def check_targets(data: SeriesData, settings: Any) -> None:
    """Refuse data of which nothing is left to be given, or to predict."""
    if settings.task in LABELLED:
        return
    for split in SPLITS:
        tensors = samples(data, split, settings, 0).tensors
        empty = ~tensors["target_mask"].flatten(1).any(1) if tensors["target_mask"].numel() else None
        if empty is None or bool(empty.all()):
            option = "--horizon" if settings.task == "forecast" else "--observed"
            raise UserError(f"the {split} data have no value to predict: lower {option}, or give longer series")
        if bool((tensors["length"] == 0).any()):
            at = int((tensors["length"] == 0).nonzero()[0])
            ids = data.series.ids
            name = (
                repr(ids[int(data.splits[split][at])]) if ids is not None else f"number {int(data.splits[split][at])}"
            )
            raise UserError(
                f"--horizon {settings.horizon:g} leaves series {name} no row to forecast from: lower it, or leave such "
                "series out"
            )
