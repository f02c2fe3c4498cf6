"""Sets of the UEA archive: their .ts files, with the published split, from a folder or from an installed aeon."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch

from ...series import cat
from ...series.ts_files import LabelledSeries, read_ts
from ..user_error import UserError, first_line

ARCHIVE = {"japanese-vowels": "JapaneseVowels", "basic-motions": "BasicMotions"}


def archive(data: str, folder: str) -> tuple[LabelledSeries, int]:
    """The samples to train on and those to test with, one behind the other, and the number of the former."""
    name = ARCHIVE[data]
    train, test = (_read(_find(name, part, folder)) for part in ("TRAIN", "TEST"))
    if train.classes != test.classes or train.series.num_channels != test.series.num_channels:
        raise UserError(f"{name}_TRAIN.ts and {name}_TEST.ts have other classes or channels: bring the archive's own")
    if train.labels is None or test.labels is None:
        raise UserError(f"{name}_TRAIN.ts and {name}_TEST.ts must have classes, in a line @classLabel")
    labels = torch.cat([train.labels, test.labels])
    return LabelledSeries(cat([train.series, test.series]), labels, train.classes), len(train.labels)


def ts_file(path: Path, dtype: torch.dtype = torch.float32) -> LabelledSeries:
    """The samples of a user's file."""
    return _read(path, dtype)


def _read(path: Path, dtype: torch.dtype = torch.float32) -> LabelledSeries:
    try:
        return read_ts(path, dtype)
    except ValueError as error:
        message = first_line(error)
        raise UserError(message if str(path) in message else f"{path}: {message}") from None


def _find(name: str, part: str, folder: str) -> Path:
    file = f"{name}_{part}.ts"
    if folder:
        places = [Path(folder, file), Path(folder, name, file)]
    else:
        found = find_spec("aeon")
        places = (
            [Path(p, "datasets", "data", name, file) for p in (found.submodule_search_locations or [])] if found else []
        )
    for place in places:
        if place.is_file():
            return place
    where = f"--data-dir {folder} has no {file}" if folder else f"{file} is not here"
    raise UserError(
        f"{where}: name the folder of the archive's files by --data-dir, or install aeon, which brings them: "
        "pip install aeon"
    )
