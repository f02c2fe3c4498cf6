"""Checks of single arguments. Each error names the argument, shows its value and says what it must be."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from ..errors import unknown_name


def is_real(x: Any) -> bool:
    """True for a real number of Python or NumPy; a bool is none."""
    return type(x) in (float, int) or (
        isinstance(x, Real) and x is not True and x is not False
    )  # the type test is fast


def describe(value: Any) -> str:
    """Type and repr of a value for a message, in one line, at most 200 characters of the repr."""
    text = " ".join(repr(value).split())
    return f"{type(value).__name__} {text if len(text) < 200 else text[:200] + ' ...'}"


def describe_shape(value: Any) -> str:
    """The shape of a tensor, or `describe` of another value, for a message."""
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else describe(value)


def number(name: str, value: Any) -> float:
    """A real number that is not NaN, or a tensor with one, as a float."""
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex() and not value.is_meta:
        if value.requires_grad:
            raise ValueError(f"{name} must not require a gradient; detach it first")
        value = value.item()
    if not is_real(value):
        raise TypeError(f"{name} must be a number; got {describe(value)}")
    try:
        result = float(value)
    except OverflowError:
        raise ValueError(f"{name} is too large for a float; got {describe(value)}") from None
    if math.isnan(result):
        raise ValueError(f"{name} must be a number; got nan")
    return result


def times(name: str, value: Any) -> Tensor:
    """A number, or a sequence, array or tensor of real numbers, as a tensor; Python numbers become float64."""
    try:
        out = value if isinstance(value, Tensor) else torch.as_tensor(value)
        if not isinstance(value, Tensor) and not out.is_complex():
            out = torch.as_tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError, IndexError) as error:
        kind = "a number, or a sequence, array or tensor of numbers"
        raise TypeError(f"{name} must be {kind}; got {describe(value)}: {error}") from None
    if out.is_complex() or out.is_meta or out.layout is not torch.strided:
        raise TypeError(f"{name} must be real numbers, in a dense tensor that holds its values; got {describe(value)}")
    return out


def integer(name: str, value: Any, minimum: int = 1, maximum: int | None = 2**31 - 1) -> int:
    """An int between minimum and maximum; maximum=None: of any size."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        cure = f": write int({value:g})" if isinstance(value, float) and value.is_integer() else ""
        raise TypeError(f"{name} must be an int; got {describe(value)}{cure}")
    result = int(value)
    if result < minimum:
        raise ValueError(f"{name} must be at least {minimum}; got {value}")
    if maximum is not None and result > maximum:
        raise ValueError(f"{name} must be at most {maximum}; got {describe(value)}")
    return result


def boolean(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False; got {describe(value)}")
    return value


def function(name: str, value: Any, form: str) -> Callable[..., Any]:
    if not callable(value):
        raise TypeError(f"{name} must be callable as {form}; got {describe(value)}")
    return value


def function_of(name: str, value: Any, form: str, count: int) -> Callable[..., Any]:
    """A function or module that can be called with so many arguments."""
    function(name, value, form)
    try:
        signature = inspect.signature(getattr(value, "forward", value))
    except (TypeError, ValueError):  # some built-in functions have none
        return value
    try:
        signature.bind(*range(count))
    except TypeError:
        raise TypeError(
            f"{name} must be callable as {form}; {describe(value)} takes {signature}: put it into a module whose "
            "forward has these arguments"
        ) from None
    return value


def one_of(name: str, value: Any, known: Iterable[str]) -> str:
    """One of the `known` names."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a name, one of {', '.join(sorted(known))}; got {describe(value)}")
    if value not in known:
        raise unknown_name(name, value, known)
    return value
