"""What a `Series` may be made of, and which of its samples may be chosen."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from ..core.validate import describe, describe_shape


def check_kinds(t: Any, x: Any, mask: Any, length: Any, static: Any) -> None:
    """Tensors of the right kinds, of one dtype, on one device."""
    numbers = {"t": t, "x": x} | ({} if static is None else {"static": static})
    for name, value in numbers.items():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise TypeError(
                f"{name} must be a floating-point tensor; got {describe_kind(value)}. odenet.series.from_lists, "
                "from_long and from_wide take lists and tables"
            )
    for name, value in numbers.items():
        if value.dtype != x.dtype:
            raise TypeError(f"{name} must have the dtype of x, {x.dtype}; got {value.dtype}: convert one of them")
    if mask is not None and not (isinstance(mask, Tensor) and mask.dtype == torch.bool):
        raise TypeError(
            f"mask must be a tensor of truth values, True where a value is observed; got {describe_kind(mask)}"
        )
    if length is not None and not (isinstance(length, Tensor) and length.dtype in (torch.int64, torch.int32)):
        raise TypeError(f"length must be a tensor of whole numbers; got {describe_kind(length)}")
    for name, value in (numbers | {"mask": mask, "length": length}).items():
        if value is not None and value.device != x.device:
            raise ValueError(f"{name} must be on the device of x, {x.device}; it is on {value.device}")


def check_shapes(t: Tensor, x: Tensor, mask: Tensor | None, length: Tensor | None, static: Tensor | None) -> None:
    if x.ndim != 3:
        raise ValueError(f"x must be (samples, rows, channels); got {describe_shape(x)}")
    size, rows, width = x.shape
    if t.shape not in ((size, rows), (rows,)):
        raise ValueError(f"t must be {(size, rows)} or {(rows,)}, as x is {tuple(x.shape)}; got {describe_shape(t)}")
    if mask is not None and mask.shape not in ((size, rows, width), (size, rows)):
        raise ValueError(f"mask must be {tuple(x.shape)} or {(size, rows)}; got {describe_shape(mask)}")
    if length is not None and length.shape != (size,):
        raise ValueError(f"length must be {(size,)}, one number for each sample; got {describe_shape(length)}")
    if static is not None and (static.ndim != 2 or len(static) != size):
        raise ValueError(f"static must be ({size}, number of features); got {describe_shape(static)}")


def check_values(t: Tensor, x: Tensor, inside: Tensor, length: Tensor, static: Tensor | None) -> None:
    """One look at all that can be wrong with values, and further ones where something is."""
    rising = (t[:, 1:] > t[:, :-1]) | ~inside[:, 1:]
    finite = torch.isfinite(t) | ~inside
    counted = (length >= 0) & (length <= t.shape[1])
    constant = torch.isfinite(t.new_zeros(()) if static is None else static)
    if bool(rising.all() & finite.all() & torch.isfinite(x).all() & counted.all() & constant.all()):
        return
    if not bool(counted.all()):
        raise ValueError(f"length must be between 0 and the {t.shape[1]} rows of x; got {describe(length.tolist())}")
    if not bool(finite.all()):
        sample, row = (~finite).nonzero()[0].tolist()
        raise ValueError(
            f"t must be finite: sample {sample} has {float(t[sample, row])} in row {row} of {int(length[sample])}"
        )
    if not bool(torch.isfinite(x).all()):
        sample, row, channel = (~torch.isfinite(x)).nonzero()[0].tolist()
        raise ValueError(
            f"x must be finite or NaN: sample {sample} has {float(x[sample, row, channel])} in channel {channel}"
        )
    if static is not None and not bool(constant.all()):
        sample, feature = (~constant).nonzero()[0].tolist()
        raise ValueError(
            f"static must be finite: sample {sample} has {float(static[sample, feature])} as feature {feature}; fill "
            "what is missing, and say by a further feature where that was"
        )
    sample, row = (~rising).nonzero()[0].tolist()
    raise ValueError(
        f"t must increase within a sample: sample {sample} has {float(t[sample, row + 1])} after "
        f"{float(t[sample, row])}. odenet.series.from_lists sorts rows, and merges those at the same time; padding "
        "behind the last row is NaN in t, or told by length="
    )


def check_narrowed(t: Tensor, narrow: Tensor) -> None:
    """Refuse times that another dtype cannot tell apart, as float32 those in seconds since 1970.

    t, narrow: (B, T), before and after; NaN behind the last row.
    """
    lost = (narrow[:, 1:] <= narrow[:, :-1]).nonzero()
    if len(lost):
        sample, row = lost[0].tolist()
        raise ValueError(
            f"two times of a sample, {float(t[sample, row])!r} and {float(t[sample, row + 1])!r}, are the same number "
            f"in {narrow.dtype}: subtract the time at which the series begin, or use torch.float64"
        )


def check_keep(keep: Any, shape: torch.Size) -> None:
    """keep: truth values of the shape of a series' mask, or one for each row."""
    if not isinstance(keep, Tensor) or keep.dtype != torch.bool or keep.shape not in (shape, shape[:2]):
        shapes = " or ".join(str(tuple(x)) for x in dict.fromkeys((shape, shape[:2])))
        raise ValueError(
            f"keep must be a tensor of truth values, {shapes}; got {describe_kind(keep)}, {describe_shape(keep)}"
        )


def describe_kind(value: Any) -> str:
    return f"a tensor of {value.dtype}" if isinstance(value, Tensor) else describe(value)


def checked_names(argument: str, names: Sequence[Any] | None, count: int) -> tuple[Any, ...] | None:
    if names is None:
        return None
    if isinstance(names, str) or len(names) != count:
        given = describe(names) if isinstance(names, str) else f"{len(names)}: {describe(list(names))}"
        raise ValueError(f"{argument} must be {count} names; got {given}")
    return tuple(names)


def sample_numbers(index: Any, size: int, device: torch.device) -> Tensor:
    """Numbers of the chosen samples of a series, from a number, a slice, a list, or a tensor of numbers or truths."""
    if isinstance(index, slice):
        return torch.tensor(range(size)[index], dtype=torch.int64, device=device)
    kinds = "a number, a slice, a list of numbers, or a tensor of numbers or truth values"
    try:
        if isinstance(index, tuple | str):
            raise TypeError
        chosen = torch.as_tensor([index] if isinstance(index, Integral) else index, device=device)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"samples are chosen by {kinds}; got {describe(index)}") from None
    chosen = (
        chosen.long() if isinstance(index, list) and not index else chosen.reshape(-1) if not chosen.ndim else chosen
    )
    if chosen.dtype == torch.bool and not isinstance(index, bool) and chosen.shape == (size,):
        return chosen.nonzero()[:, 0]
    if chosen.ndim != 1 or chosen.dtype == torch.bool or chosen.is_floating_point() or chosen.is_complex():
        raise TypeError(f"{size} samples are chosen by {kinds}; got {describe(index)}")
    outside = chosen[(chosen < -size) | (chosen >= size)]
    if len(outside):
        raise IndexError(f"sample {int(outside[0])} of {size}")
    return chosen.long()
