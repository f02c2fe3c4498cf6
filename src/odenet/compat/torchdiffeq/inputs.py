"""Checked arguments of torchdiffeq's functions, in the form that `odenet.solve` takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ...core.leaves import real_dtype
from ...core.validate import describe, function
from ...errors import warn

State = Tensor | tuple[Tensor, ...]
_COMPARED_IN_PYTHON = 64


class FuncAdapter:
    """func as `odenet.solve` calls it: t in y's real dtype, and results in y's shape and dtype.

    broadcasts: broadcast a result for a single tensor to y's shape, as torchdiffeq does in fixed-step methods.
    """

    def __init__(self, func: Callable[..., Any], dtype: torch.dtype, broadcasts: bool = True) -> None:
        self.func, self.dtype, self.broadcasts = func, real_dtype(dtype), broadcasts

    def __call__(self, t: Tensor, y: State) -> State:
        t = t if t.dtype == self.dtype else t.to(self.dtype)
        out = self.func(t, y)
        if isinstance(y, Tensor):
            return self._checked_like(out, y, False)
        return tuple(self._checked_like(k, x, True) for k, x in zip(out, y, strict=True))

    def _checked_like(self, k: Any, y: Tensor, in_tuple: bool) -> Any:
        """in_tuple: y is an entry of a tuple, which torchdiffeq flattens into one vector."""
        if not isinstance(k, Tensor):
            return k  # solve() raises an error that names it
        if k.shape != y.shape:
            if _without_ones(k) == _without_ones(y) or (in_tuple and k.numel() == y.numel()):
                k = k.reshape(y.shape)
            elif self.broadcasts and not in_tuple and _broadcasts(k, y):
                k = k.expand(y.shape)
            else:
                raise RuntimeError(
                    f"func returned a tensor of shape {tuple(k.shape)} for y of shape {tuple(y.shape)}: dy/dt has y's "
                    "shape"
                )
        return k if k.dtype == y.dtype else k.to(y.dtype)


def _without_ones(x: Tensor) -> list[int]:
    return [n for n in x.shape if n != 1]


def _broadcasts(k: Tensor, y: Tensor) -> bool:
    """True if k broadcasts to y's shape."""
    ones = (1,) * (y.ndim - k.ndim)
    return k.ndim <= y.ndim and all(a in (1, b) for a, b in zip((*ones, *k.shape), y.shape, strict=True))


@dataclass
class Inputs:
    """y0: a tensor, or a tuple of tensors of one dtype. t: on the device of y0. rtol, atol: as solve() takes them."""

    func: Callable[..., Any]
    y0: State
    t: Tensor
    rtol: Any
    atol: Any

    @staticmethod
    def from_arguments(func: Any, y0: Any, t: Any, rtol: Any, atol: Any, event_fn: Any = None) -> Inputs:
        """Check and convert the arguments; raises where torchdiffeq does."""
        function("func", func, "func(t, y)")
        if event_fn is not None:
            function("event_fn", event_fn, "event_fn(t, y)")
        y0 = _state(y0)
        if event_fn is not None and isinstance(t, Tensor) and t.ndim == 1 and len(t) != 2:
            raise ValueError(f"t must have two times with event_fn, its start and its direction; got {len(t)} of them")
        _check_times(t)
        first = y0 if isinstance(y0, Tensor) else y0[0]
        if t.device != first.device:
            warn(f"t is on {t.device}, but y0 on {first.device}: t is moved there")
            t = t.to(first.device)
        return Inputs(func, y0, t, _tolerance("rtol", rtol, y0), _tolerance("atol", atol, y0))

    @property
    def first_tensor(self) -> Tensor:
        """y0, or its first entry."""
        return self.y0 if isinstance(self.y0, Tensor) else self.y0[0]

    def field(self, broadcasts: bool = True) -> FuncAdapter:
        return FuncAdapter(self.func, self.first_tensor.dtype, broadcasts)


def _state(y0: Any) -> State:
    for x in y0 if isinstance(y0, tuple) else (y0,):
        if isinstance(x, Tensor) and (x.is_meta or x.dtype.itemsize == 1 or x.layout is not torch.strided):
            raise TypeError(f"y0 must be dense, of floating point, and hold its values; got {describe(x)}")
    if isinstance(y0, Tensor):
        return y0
    if not isinstance(y0, tuple):
        raise AssertionError(f"y0 must be a tensor or a tuple of tensors; got {type(y0).__name__}: use tuple(y0)")
    if not y0:
        raise ValueError("y0 must hold at least one tensor; got an empty tuple")
    for i, x in enumerate(y0):
        if not isinstance(x, Tensor):
            raise AttributeError(f"y0[{i}] must be a tensor; got {type(x).__name__}: use torch.tensor(...)")
    dtype = y0[0].dtype
    for x in y0[1:]:
        dtype = torch.promote_types(dtype, x.dtype)
    return tuple(x.to(dtype) for x in y0)


def _check_times(t: Any) -> None:
    if not isinstance(t, Tensor):
        raise AssertionError(f"t must be a tensor of times; got {type(t).__name__}: use torch.tensor(...)")
    if not t.is_floating_point():
        raise TypeError(f"t must be a floating point tensor; got {t.dtype}: use t.float()")
    if t.ndim != 1:
        raise AssertionError(f"t must be one-dimensional; got shape {tuple(t.shape)}")
    if len(t) == 0:
        raise AssertionError("t must hold at least one time; got none")
    if not _monotone(t.detach()):
        raise AssertionError(f"t must be strictly increasing or strictly decreasing; got {t.tolist()}")


def _monotone(t: Tensor) -> bool:
    """True if t strictly increases or strictly decreases; short times are faster to compare in Python."""
    if len(t) > _COMPARED_IN_PYTHON:
        steps = t.diff()
        return bool((steps > 0).all() or (steps < 0).all())
    pairs = list(pairwise(t.tolist()))
    return all(a < b for a, b in pairs) or all(a > b for a, b in pairs)


def as_dense_tensor(name: str, value: Any) -> Tensor:
    """value as a tensor; raises TypeError if it is none."""
    try:
        out = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError, OverflowError, IndexError) as error:
        raise TypeError(f"{name} must be a number or a tensor; got {describe(value)}: {error}") from None
    if out.is_meta or out.layout is not torch.strided:
        raise TypeError(f"{name} must be a dense tensor that holds its values; got {describe(value)}")
    return out


def options_dict(name: str, value: Any) -> dict[str, Any]:
    """A copy of a dictionary of options, {} for None."""
    if value is not None and not isinstance(value, dict):
        raise TypeError(f"{name} must be a dictionary of options, or None; got {describe(value)}")
    return dict(value or {})


def _tolerance(name: str, value: Any, y0: State) -> Any:
    if isinstance(value, Tensor) and value.requires_grad:
        raise AssertionError(f"{name} must not require a gradient: use {name}.detach()")
    if isinstance(y0, Tensor):
        return value if isinstance(value, (int, float, Tensor)) else as_dense_tensor(name, value)
    if (isinstance(value, Tensor) and value.ndim == 0) or not hasattr(value, "__iter__"):
        return value
    value = tuple(value)
    if len(value) != len(y0):
        raise AssertionError(f"{name} must have one entry for each tensor of y0, {len(y0)}; got {len(value)}")
    out = []
    for tol, x in zip(value, y0, strict=True):
        if isinstance(tol, Tensor) and tol.requires_grad:
            raise AssertionError(f"{name} must not require a gradient: use {name}.detach()")
        tol = as_dense_tensor(name, tol)
        out.append(tol.reshape(x.shape) if tol.numel() == x.numel() else tol)
    return tuple(out)
