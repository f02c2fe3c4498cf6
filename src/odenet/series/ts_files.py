"""Files in the format .ts of the UEA and UCR archive of time series classification.

Bagnall et al. 2018, "The UEA multivariate time series classification archive";
https://www.timeseriesclassification.com. A header of lines that begin with @, then one line for each sample: its
channels are separated by colons, the values of a channel by commas, "?" is a missing value, and the class stands last.
With @timeStamps true a value is (time,value).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .sample_lists import from_lists
from .series import Series

_PAIR = re.compile(r"\(([^()]*),([^(),]*)\)")
_PAIRS = re.compile(rf"\s*({_PAIR.pattern}\s*(,\s*(?=\()|$))*")

_OUTSIDE = re.compile(r":(?![^(]*\))")  # colons that are in no pair


class LabelledSeries(NamedTuple):
    """The content of a .ts file.

    labels: (B,), numbers of the classes, or targets of a regression; None where the file has neither. classes: names of
    the classes, none for a regression.
    """

    series: Series
    labels: Tensor | None
    classes: tuple[str, ...]


class _Line(NamedTuple):
    """A sample: times and values of each channel, and its label."""

    ts: list[list[float]]
    xs: list[list[float]]
    label: str


def read_ts(path: str | Path, dtype: torch.dtype | None = None) -> LabelledSeries:
    """The series and labels of a .ts file. Without time stamps the rows are at 0, 1, 2 and so on.

    Raises ValueError with the number of the line where it is not of this format.
    """
    path = Path(path)
    header: dict[str, str] = {}
    lines: list[_Line] = []
    for number, line in _lines(path):
        if "data" in header:
            try:
                lines.append(_sample(line, header))
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
        elif line.startswith("@"):
            name, *value = line[1:].split(None, 1)
            header[name.lower()] = value[0].strip() if value else ""
        else:
            raise ValueError(f"{path}, line {number}: data before the line @data")
    if not lines:
        missing = "no sample behind the line @data" if "data" in header else "no line @data: it is no .ts file"
        raise ValueError(f"{path} has {missing}")
    counts = [len(line.ts) for line in lines]
    if len(set(counts)) > 1:
        raise ValueError(f"{path} has samples of {min(counts)} and of {max(counts)} channels")
    series = from_lists([line.ts for line in lines], [line.xs for line in lines], dtype=dtype)
    labels = [line.label for line in lines]
    classes = tuple(_classes(header))
    if _is_true(header, "targetlabel"):
        return LabelledSeries(series, torch.tensor([float(label) for label in labels], dtype=series.x.dtype), ())
    if not classes:
        return LabelledSeries(series, None, ())
    place = {name: i for i, name in enumerate(classes)}
    return LabelledSeries(series, torch.tensor([place[label] for label in labels]), classes)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Those that say something, with their numbers."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if (line := line.strip()) and not line.startswith(("#", "%")):
                yield number, line


def _is_true(header: dict[str, str], name: str) -> bool:
    return header.get(name, "").lower().startswith("true")


def _classes(header: dict[str, str]) -> list[str]:
    return header["classlabel"].split()[1:] if _is_true(header, "classlabel") else []


def _sample(line: str, header: dict[str, str]) -> _Line:
    channels, label = _OUTSIDE.split(line), ""
    if _is_true(header, "targetlabel"):
        label = channels.pop().strip()
        if not math.isfinite(float(label)):
            raise ValueError(f"the target must be finite; got {label}")
    elif classes := _classes(header):
        label = channels.pop().strip()
        if label not in classes:
            raise ValueError(f"the sample is of class {label!r}, which @classLabel does not name: {', '.join(classes)}")
    wanted = header.get("dimensions") or header.get("dimension") or ("1" if _is_true(header, "univariate") else "")
    if wanted and len(channels) != int(wanted):
        raise ValueError(f"{len(channels)} channels, where {wanted} are announced")
    read = _stamped if _is_true(header, "timestamps") else _plain
    ts, xs = zip(*map(read, channels), strict=True) if channels else ((), ())
    return _Line(list(ts), list(xs), label)


def _plain(channel: str) -> tuple[list[float], list[float]]:
    """Times and values of "1.5,2,?"."""
    values = [_value(v) for v in channel.split(",")] if channel.strip() else []
    return [float(i) for i in range(len(values))], values


def _stamped(channel: str) -> tuple[list[float], list[float]]:
    """Times and values of "(0,1.5),(2.5,2)"."""
    if not _PAIRS.fullmatch(channel):
        raise ValueError(f"a channel must be (time,value),(time,value) and so on; got {channel[:80]!r}")
    pairs: list[tuple[str, str]] = _PAIR.findall(channel)
    try:
        times = [float(t) for t, _ in pairs]
    except ValueError as error:
        raise ValueError(f"time stamps must be numbers, as hours since the first: {error}") from None
    if len(set(times)) < len(times) or not all(map(math.isfinite, times)):
        raise ValueError("the times of a channel must be finite, and each of them once")
    return times, [_value(v) for _, v in pairs]


def _value(text: str) -> float:
    if (text := text.strip()).lower() in ("?", "nan"):
        return math.nan
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"a value must be finite; got {text}")
    return value
