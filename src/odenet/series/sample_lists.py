"""Series from lists of times and values, one of each for a sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.validate import describe, describe_shape
from .assembly import Duplicates, assemble
from .series import Series
from .series_checks import checked_names

EXACT = 2**53  # up to it float64 has every whole number


class _Observations(NamedTuple):
    """Those of one sample, (N,) each, and the number of its channels; None where it does not say."""

    time: Tensor
    channel: Tensor
    value: Tensor
    width: int | None


def from_lists(
    ts: Sequence[Any],
    xs: Sequence[Any],
    static: Any = None,
    channels: Sequence[str] | None = None,
    ids: Sequence[Any] | None = None,
    duplicates: Duplicates = "error",
    dtype: torch.dtype | None = None,
) -> Series:
    """Series from one list of times, (T_i,), and one of values, (T_i, C), for each sample; in any order of times.

    Where channels have times of their own, both are lists of C: times (T_ic,) and values (T_ic,) of each channel. NaN
    is a missing value. Lists are of numbers, arrays or tensors. static: (B, S). channels, ids: names of the C channels
    and the B samples. duplicates: what several values of one channel at one time mean: "error", "mean", "first" or
    "last". dtype: by default PyTorch's default. The series is on the CPU; `Series.to` moves it.

    Raises TypeError for what is no number, ValueError where numbers of times and values differ, for times that are not
    finite or that are one number in `dtype`, and for duplicates.
    """
    dtype = checked_dtype(dtype)
    for name, value in (("ts", ts), ("xs", xs)):
        if not hasattr(value, "__len__") or isinstance(value, str | dict):
            raise TypeError(f"{name} must be a list with an entry for each sample; got {describe(value)}")
    if len(ts) != len(xs):
        raise ValueError(f"ts and xs must have one entry for each sample; they have {len(ts)} and {len(xs)}")
    ids = checked_names("ids", ids, len(ts))
    width = None if channels is None else len(channels)
    parts: list[_Observations] = []
    for i, (t, x) in enumerate(zip(ts, xs, strict=True)):
        part = _by_channel(i, t, x, dtype) if _is_nested(t) else _by_row(i, t, x, dtype)
        if None not in (width, part.width) and part.width != width:
            those = f"channels= names {width}" if channels is not None else f"those before it {width}"
            raise ValueError(f"all samples must have the same channels: xs[{i}] has {part.width}, and {those}")
        width = part.width if width is None else width
        parts.append(part)
    none = (torch.zeros(0, dtype=torch.float64), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=dtype))
    time, channel, value = (torch.cat(list(column)) for column in zip(none, *(part[:3] for part in parts), strict=True))
    sample = torch.arange(len(parts)).repeat_interleave(torch.tensor([len(p.time) for p in parts], dtype=torch.int64))
    features = None if static is None else numbers("static", static, dtype)
    return assemble(
        sample, time, channel, value, len(parts), width or 0, duplicates, static=features, channels=channels, ids=ids
    )


def _by_channel(i: int, t: Any, x: Any, dtype: torch.dtype) -> _Observations:
    """A sample whose channels have times of their own."""
    if not hasattr(x, "__len__"):
        raise TypeError(f"xs[{i}] must be a list of the values of each channel, as ts[{i}] is one; got {describe(x)}")
    times = [_times(f"ts[{i}][{k}]", c) for k, c in enumerate(t)]
    values = [_vector(f"xs[{i}][{k}]", numbers(f"xs[{i}][{k}]", c, dtype)) for k, c in enumerate(x)]
    counts = [len(c) for c in times]
    if counts != [len(c) for c in values]:
        raise ValueError(
            f"the channels of sample {i} have {describe(counts)} times and {describe([len(c) for c in values])} values"
        )
    channel = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return _Observations(torch.cat(times), channel, torch.cat(values), len(counts))


def _by_row(i: int, t: Any, x: Any, dtype: torch.dtype) -> _Observations:
    """A sample with a row of values for each time."""
    time, value = _times(f"ts[{i}]", t), numbers(f"xs[{i}]", x, dtype)
    if value.ndim == 1:
        value = value[:, None]
        if not len(time) and not len(value):  # an empty list does not say how many channels there are
            return _Observations(time, time.long(), value[:, 0], None)
    if value.ndim != 2 or len(value) != len(time):
        raise ValueError(
            f"xs[{i}] must be ({len(time)}, channels), a row for each time of ts[{i}]; got {describe_shape(value)}"
        )
    rows, width = value.shape
    if not width:
        raise ValueError(f"xs[{i}] must be ({rows}, channels), with at least one channel; got {describe_shape(value)}")
    return _Observations(time.repeat_interleave(width), torch.arange(width).repeat(rows), value.reshape(-1), width)


def _is_nested(t: Any) -> bool:
    """Whether a sample's times are lists of times of its channels."""
    if isinstance(t, Tensor) or not isinstance(t, list | tuple) or not t:
        return False
    return all(isinstance(c, list | tuple) or getattr(c, "ndim", 0) == 1 for c in t)


def _times(name: str, value: Any) -> Tensor:
    whole = [v for v in value if isinstance(v, int)] if isinstance(value, list | tuple) else value
    check_exact(name, whole)
    return _vector(name, numbers(name, value, torch.float64))


def _vector(name: str, value: Tensor) -> Tensor:
    if value.ndim != 1:
        raise ValueError(
            f"{name} must be one-dimensional, or a list of such of each channel; it has shape {tuple(value.shape)}. "
            "ts and xs are lists of samples: that of one sample is [t], [x]"
        )
    return value


def check_exact(name: str, value: Any) -> None:
    """Refuse whole numbers that float64 cannot tell apart, as nanoseconds since 1970, in a list, array or tensor."""
    kind = value.dtype if isinstance(value, Tensor) else getattr(getattr(value, "dtype", None), "kind", "")
    if isinstance(value, list):
        largest = max(map(abs, value), default=0)
    elif kind in ("i", "u", torch.int64, torch.uint64) and len(value):
        largest = max(abs(int(value.min())), abs(int(value.max())))
    else:
        return
    if largest > EXACT:
        raise ValueError(
            f"{name} has the whole number {largest}, and above 2**53 float64 does not tell them apart: subtract the "
            "time at which the series begin"
        )


def numbers(name: str, value: Any, dtype: torch.dtype) -> Tensor:
    """A tensor, array or nested list of real numbers as a tensor on the CPU."""
    try:
        if isinstance(value, Tensor):
            out = value.detach().cpu()
        else:  # a copy, as the arrays of data frames may not be written to
            array = getattr(getattr(value, "dtype", None), "kind", None)
            out = torch.tensor(value) if array is not None else torch.as_tensor(value, dtype=dtype)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        reason = str(error).splitlines()[0]
        raise TypeError(f"{name} must be numbers, NaN where missing; got {describe(value)}: {reason}") from None
    if out.is_complex():
        raise TypeError(f"{name} must be real numbers; got complex ones")
    return out.to(dtype)


def checked_dtype(dtype: Any) -> torch.dtype:
    """The dtype of a series, by default PyTorch's default."""
    if dtype is None:
        return torch.get_default_dtype()
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating-point torch.dtype; got {describe(dtype)}")
    return dtype
