"""Callbacks that are attributes of func."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ...engine.callbacks import Callbacks
from ...errors import warn
from .method_names import SCIPY, is_adaptive

_NAMES = {"callback_step": "step", "callback_accept_step": "accept", "callback_reject_step": "reject"}


def find_callbacks(
    func: Any, method: str, dtype: torch.dtype, suffix: str = "", view: Callable[[Any], Any] | None = None
) -> Callbacks | None:
    """The callbacks of func that the method supports; warns about unsupported ones.

    dtype: of the times that callbacks get. view: maps the state to the form that callbacks get.
    """
    callbacks = {name: getattr(func, name + suffix) for name in _NAMES if callable(getattr(func, name + suffix, None))}
    supported = set(_NAMES) if is_adaptive(method) else set() if method == SCIPY else {"callback_step"}
    if callbacks.keys() - supported:
        unsupported = ", ".join(sorted(name + suffix for name in callbacks.keys() - supported))
        warn(f"method={method!r} does not call {unsupported}")
    calls = {_NAMES[name]: _converted(f, dtype, view) for name, f in callbacks.items() if name in supported}
    return Callbacks(**calls) if calls else None


def _converted(f: Callable[..., Any], dtype: torch.dtype, show: Callable[[Any], Any] | None) -> Callable[..., Any]:
    return lambda t0, y0, dt: f(t0.to(dtype), y0 if show is None else show(y0), dt.to(dtype))
