"""Checks of y0, ts and the tolerances of a solve. Each error names the argument, shows its value and says the cure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.leaves import Leaves, real_dtype
from ..core.norms import Tolerance
from ..core.pytrees import flatten, flatten_like, flatten_with_names
from ..core.torch_func import all_true, inside_transform, largest, unwrapped
from ..core.validate import describe, is_real, number

FEW_TIMES = 64  # up to this many times are checked faster in Python
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128)


def state(y0: Any, per_sample: bool) -> tuple[list[str], list[Tensor]]:
    """Names and leaves of y0."""
    pairs = flatten_with_names(y0)
    if not pairs:
        raise ValueError(f"y0 has no tensor in it; got {y0!r}")
    for name, leaf in pairs:
        if not isinstance(leaf, Tensor):
            raise TypeError(f"y0{name} must be a tensor; got {type(leaf).__name__} {leaf!r}: {_tensor_cure(y0)}")
        if leaf.dtype not in _FLOATS:
            raise TypeError(f"y0{name} must be real or complex floating point; got {leaf.dtype}: use y0.float()")
        if leaf.layout is not torch.strided or leaf.is_meta:
            got = "device meta" if leaf.is_meta else f"layout {leaf.layout}: use y0.to_dense()"
            raise TypeError(f"y0{name} must be a dense tensor that holds its values; got {got}")
        if leaf.numel() == 0:
            raise ValueError(f"y0{name} has no elements; got shape {tuple(leaf.shape)}: solve no empty batch")
    names, leaves = [n for n, _ in pairs], [x for _, x in pairs]
    # autograd refuses a tensor made in inference mode, but not its copy
    if not torch.compiler.is_compiling() and not torch.is_inference_mode_enabled():
        leaves = [x.clone() if x.is_inference() else x for x in leaves]
    devices = {str(x.device) for x in leaves}
    if len(devices) > 1:
        raise ValueError(f"y0's tensors must be on one device; got {', '.join(sorted(devices))}")
    if per_sample:
        sizes = [x.shape[0] if x.ndim else None for x in leaves]
        if None in sizes or len(set(sizes)) > 1:
            shapes = ", ".join(f"y0{n} {tuple(x.shape)}" for n, x in zip(names, leaves, strict=True))
            raise ValueError(f"per_sample=True needs the same leading batch axis on all of y0; got {shapes}")
    return names, leaves


def _tensor_cure(y0: Any) -> str:
    """How to write y0 as a tensor, for a y0 of numbers or arrays."""
    if is_real(y0):
        return f"write torch.tensor({y0!r}, dtype=torch.float64)"
    if isinstance(y0, (list, tuple)) and y0 and all(is_real(x) for x in y0):
        swapped = (
            " The order of the arguments is solve(f, y0, ts): swap them if these are times." if len(y0) == 2 else ""
        )
        return f"write y0=torch.tensor({[float(x) for x in y0]}, dtype=torch.float64).{swapped}"
    return "use torch.tensor(..., dtype=...)"


def smallest_range(leaves: list[Tensor]) -> Tensor:
    """The leaf whose dtype has the smallest range."""
    return min(leaves, key=lambda x: torch.finfo(x.dtype).max)


def times(ts: Any, per_sample: bool, leaf: Tensor) -> Tensor:
    """ts as a tensor in its own dtype (Python numbers: float64), (T,) or (B, T). leaf: see `smallest_range`."""
    if isinstance(ts, (int, float)):
        raise TypeError(
            f"ts must hold at least two times, the first that of y0; got the number {ts!r}: write [0.0, {ts!r}]"
        )
    if isinstance(ts, (str, bytes)):
        raise TypeError(f"ts must be a sequence, array or tensor of times; got {describe(ts)}")
    try:
        out = ts if isinstance(ts, Tensor) else _stacked(ts)
        if not torch.compiler.is_compiling() and out.is_inference() and not torch.is_inference_mode_enabled():
            out = out.clone()  # see `state`
    except (TypeError, ValueError, RuntimeError, OverflowError, IndexError) as error:
        raise TypeError(f"ts must be a sequence, array or tensor of times; got {type(ts).__name__}: {error}") from None
    if out.is_meta or out.layout is not torch.strided:
        raise TypeError(f"ts must be a dense tensor that holds its values; got {describe(out)}")
    if out.is_complex() or out.dtype == torch.bool:
        raise TypeError(f"ts must be real numbers; got {out.dtype}")
    if not out.is_floating_point():
        out = out.double()
    out = out.to(leaf.device)
    if out.ndim == 2 and not per_sample:
        raise ValueError(f"ts of shape {tuple(out.shape)} gives each sample its own times: that needs per_sample=True")
    if out.ndim not in (1, 2) or out.shape[-1] < 2:
        raise ValueError(
            "ts must hold at least two times, that of y0 first, and have shape (T,), or (B, T) with per_sample; got "
            f"shape {tuple(out.shape)}: write for example odenet.solve(f, y0, [0.0, 1.0])"
        )
    if out.ndim == 2 and out.shape[0] != leaf.shape[0]:
        raise ValueError(f"ts has {out.shape[0]} rows, but y0 has {leaf.shape[0]} samples: give one row a sample")
    flat = out.detach()
    many = flat.ndim > 1 or len(flat) > FEW_TIMES or inside_transform() or torch.compiler.is_compiling()
    finite, ordered, span = _order_of_tensor(flat) if many else _order_of_list(flat.tolist())
    if not finite:
        entries = unwrapped(flat).tolist() if flat.numel() < 20 else "NaN or infinite entries"
        raise ValueError(f"ts must be finite; got {entries}")
    if not ordered:
        shown = unwrapped(flat).tolist() if flat.numel() < 20 else f"times of shape {tuple(flat.shape)} that turn back"
        raise ValueError(
            f"ts must increase or decrease throughout (equal neighbours are allowed); got {shown}. The order of the "
            "arguments is solve(f, y0, ts)"
        )
    max_span = torch.finfo(torch.promote_types(real_dtype(leaf.dtype), torch.float32)).max
    if span > max_span:
        raise ValueError(
            f"ts spans {span:.3g}, but y0's dtype {leaf.dtype}, in which step sizes are multiplied by slopes, has no "
            f"numbers beyond {max_span:.2g}: count time in a larger unit, or use float64"
        )
    return out.expand(leaf.shape[0], -1) if per_sample and out.ndim == 1 else out


def _order_of_list(ts: list[float]) -> tuple[bool, bool, float]:
    """Whether all times are finite, whether they are monotone, and the time from first to last."""
    pairs = list(itertools.pairwise(ts))
    ordered = all(a <= b for a, b in pairs) or all(a >= b for a, b in pairs)
    return all(map(math.isfinite, ts)), ordered, abs(ts[-1] - ts[0])


def _order_of_tensor(ts: Tensor) -> tuple[bool, bool, float]:
    """The same for (T,) or (B, T), with the longest time of any sample."""
    steps = ts.diff(dim=-1)
    ordered = all_true((steps >= 0).all(-1) | (steps <= 0).all(-1))
    return all_true(torch.isfinite(ts)), ordered, 0.0 if torch.compiler.is_compiling() else largest(steps.sum(-1).abs())


def _stacked(ts: Any) -> Tensor:
    items = list(ts) if isinstance(ts, Sequence) else ts
    if isinstance(items, list) and any(isinstance(x, Tensor) for x in items):
        return torch.stack([x if isinstance(x, Tensor) else torch.tensor(x, dtype=torch.float64) for x in items])
    if isinstance(items, list) and not any(isinstance(x, (list, tuple)) or hasattr(x, "__len__") for x in items):
        return torch.tensor(items, dtype=torch.float64)
    return torch.as_tensor(ts) if hasattr(ts, "__array__") else torch.tensor(ts, dtype=torch.float64)


def tolerance(name: str, tolerance: Any, y0: Any, leaves: Leaves) -> Tolerance:
    """For each leaf of y0 a number, or a tensor in its real dtype that broadcasts against it."""
    if is_real(tolerance) or (isinstance(tolerance, Tensor) and tolerance.ndim == 0):
        values = [tolerance] * len(leaves)
    else:
        y0_spec = flatten(y0)[1]
        values, spec = flatten_like(tolerance, y0_spec)
        if spec != y0_spec:
            raise TypeError(f"{name} must be a number, or have y0's structure; got {tolerance!r}")
    out: list[float | Tensor] = []
    for value, leaf in zip(values, leaves, strict=True):
        if isinstance(value, Tensor):
            if value.is_meta or value.layout is not torch.strided:
                raise TypeError(f"{name} must be a dense tensor that holds its values; got {describe(value)}")
            if value.requires_grad:
                raise ValueError(f"{name} must not require a gradient; use {name}.detach()")
            try:
                fits = torch.broadcast_shapes(value.shape, leaf.shape) == leaf.shape
            except RuntimeError:
                fits = False
            if not fits:
                raise ValueError(f"{name} of shape {tuple(value.shape)} does not broadcast to y0's {tuple(leaf.shape)}")
            if value.is_complex():
                raise TypeError(f"{name} must be real; got {describe(value)}")
            value = value.to(leaf.device, real_dtype(leaf.dtype))
            valid = all_true((value >= 0) & torch.isfinite(value))
        elif is_real(value):
            value = number(name, value)
            valid = 0 <= value < float("inf")
        else:
            raise TypeError(f"{name} must be a number, or have y0's structure; got {tolerance!r}")
        if not valid:
            raise ValueError(f"{name} must be zero or positive, and finite; got {tolerance!r}")
        out.append(value)
    return out
