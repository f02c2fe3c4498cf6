"""Checks that the result of f matches the state, with an error that says the cure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .leaves import Leaves
from .pytrees import Spec, outline


def matches(out: Sequence[Any], y: Leaves, dtypes: tuple[torch.dtype, ...]) -> bool:
    """True when the result has the shapes, dtypes and devices of y. Fast: it runs at every evaluation."""
    for k, x, dtype in zip(out, y, dtypes, strict=True):
        if not isinstance(k, Tensor) or k.shape != x.shape or k.dtype is not dtype:
            return False
        if k.device != x.device or k.layout is not torch.strided:
            return False
    return True


def call_note(
    names: list[str], t: Tensor, y: Leaves, dtypes: tuple[torch.dtype, ...], num_args: int, error: Exception
) -> str:
    """A note for an error that f raised at its first evaluation: the arguments of f, and a cure."""
    pairs = zip(names, y, dtypes, strict=True)
    states = ", ".join(f"y{name} of shape {tuple(x.shape)} and dtype {dtype}" for name, x, dtype in pairs)
    extra = f", and {num_args} of args" if num_args else ""
    note = f"odenet called f(t, y, *args) with t of shape {tuple(t.shape)} and dtype {t.dtype}, {states}{extra}."
    if isinstance(error, TypeError) and "argument" in str(error):
        if "missing" in str(error):
            note += " Arguments of f after t and y are given by solve(..., args=(...))."
        elif not num_args:
            note += " If f does not depend on t, write lambda t, y: f(y)."
    elif ("dtype" in str(error) or "scalar type" in str(error)) and t.dtype != dtypes[0]:
        note += (
            " t has the dtype of ts (Python numbers count as float64): if f joins t to y, write t.to(y.dtype), or "
            "give ts in y's dtype."
        )
    return note


def check_field_output(
    out: list[Any], spec: Spec, y_spec: Spec, names: list[str], y: Leaves, dtypes: tuple[torch.dtype, ...]
) -> None:
    """Raise TypeError or ValueError if f's result, of structure `spec`, does not match y, of structure `y_spec`."""
    if spec != y_spec:
        raise TypeError(
            f"f returned the structure {outline(spec)}, but y has {outline(y_spec)}: return dy/dt with y's structure"
        )
    autocast = any(torch.is_autocast_enabled(x.device.type) for x in y)
    for name, k, x, dtype in zip(names, out, y, dtypes, strict=True):
        where = f"f's result{name}"
        if not isinstance(k, Tensor):
            raise TypeError(f"{where} is a {type(k).__name__}, not a tensor: return dy/dt as a tensor like y{name}")
        if k.shape != x.shape:
            raise ValueError(
                f"{where} has shape {tuple(k.shape)}, but y{name} has {tuple(x.shape)}: dy/dt has y's shape"
            )
        if k.layout is not torch.strided:
            raise TypeError(f"{where} has layout {k.layout}: return a dense tensor, with to_dense()")
        if k.device != x.device:
            raise ValueError(f"{where} is on {k.device}, but y{name} is on {x.device}: move f's tensors there")
        if k.dtype != dtype and not (autocast and k.dtype.is_floating_point):
            raise TypeError(
                f"{where} has dtype {k.dtype}, but y{name} has {dtype}: cast it, or cast t with t.to(y.dtype)"
            )


def check_jacobian(jacobian: Any, shape: tuple[int, ...]) -> None:
    """Raise ValueError if the result of the caller's jacobian function is no real tensor of this shape."""
    if not isinstance(jacobian, Tensor) or jacobian.shape != shape:
        got = tuple(jacobian.shape) if isinstance(jacobian, Tensor) else type(jacobian).__name__
        raise ValueError(f"jacobian must return df/dy as a tensor of shape {shape}; got {got}")
    if jacobian.is_complex():
        raise ValueError(f"jacobian must return real numbers for a real state; got {jacobian.dtype}: return its .real")
