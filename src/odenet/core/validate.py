"""Checks of single arguments: each error names the argument, shows what was given and says what it must be."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from ..errors import unknown_name


def is_real(x: Any) -> bool:
    """A real number of Python or NumPy."""
    return type(x) in (float, int) or (isinstance(x, Real) and not isinstance(x, bool))  # the first is quick


def describe(given: Any) -> str:
    """What was given, as far as it fits into a message."""
    text = repr(given)
    return f"{type(given).__name__} {text if len(text) < 200 else text[:200] + ' ...'}"


def number(name: str, given: Any) -> float:
    """A real number that is not NaN, as a float; a tensor of one number counts."""
    if isinstance(given, Tensor) and given.numel() == 1 and not given.is_complex() and not given.is_meta:
        if given.requires_grad:
            raise ValueError(f"{name} must not require a gradient; use {name}.detach()")
        given = given.item()
    if not is_real(given):
        raise TypeError(f"{name} must be a number; got {describe(given)}")
    try:
        value = float(given)
    except OverflowError:
        raise ValueError(f"{name} is too large for a float; got {describe(given)}") from None
    if math.isnan(value):
        raise ValueError(f"{name} must be a number; got {name}=nan")
    return value


def times(name: str, given: Any) -> Tensor:
    """Numbers, or what holds some, as a tensor; Python's are float64."""
    try:
        out = given if isinstance(given, Tensor) else torch.as_tensor(given)
        if not isinstance(given, Tensor) and not out.is_complex():
            out = torch.as_tensor(given, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError, IndexError) as error:
        kind = "a number, or a sequence, array or tensor of numbers"
        raise TypeError(f"{name} must be {kind}; got {describe(given)}: {error}") from None
    if out.is_complex() or out.is_meta or out.layout is not torch.strided:
        raise TypeError(f"{name} must be real numbers, in a dense tensor that holds its values; got {describe(given)}")
    return out


def integer(name: str, given: Any, least: int = 1, most: int = 2**31 - 1) -> int:
    if isinstance(given, bool) or not isinstance(given, Integral):
        cure = f": write int({given:g})" if isinstance(given, float) and given.is_integer() else ""
        raise TypeError(f"{name} must be an int; got {describe(given)}{cure}")
    value = int(given)
    if value < least:
        raise ValueError(f"{name} must be at least {least}; got {given}")
    if value > most:
        raise ValueError(f"{name} must be at most {most}; got {describe(given)}")
    return value


def boolean(name: str, given: Any) -> bool:
    if not isinstance(given, bool):
        raise TypeError(f"{name} must be True or False; got {describe(given)}")
    return given


def function(name: str, given: Any, form: str) -> Callable[..., Any]:
    if not callable(given):
        raise TypeError(f"{name} must be callable as {form}; got {describe(given)}")
    return given


def one_of(name: str, given: Any, known: Iterable[str]) -> str:
    """One of the `known` names."""
    if not isinstance(given, str):
        raise TypeError(f"{name} must be a name, one of {', '.join(sorted(known))}; got {describe(given)}")
    if given not in known:
        raise unknown_name(name, given, known)
    return given
