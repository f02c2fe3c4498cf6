"""Callbacks that are attributes of func."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from ...engine.callbacks import Callbacks
from .methods import SCIPY, adaptive

_NAMES = {"callback_step": "step", "callback_accept_step": "accept", "callback_reject_step": "reject"}


def of(func: Any, method: str, suffix: str = "", show: Callable[[Any], Any] | None = None) -> Callbacks | None:
    """Those that func has and the method supports; the others warn. show: what they get of the state."""
    found = {name: getattr(func, name + suffix) for name in _NAMES if callable(getattr(func, name + suffix, None))}
    supported = set(_NAMES) if adaptive(method) else set() if method == SCIPY else {"callback_step"}
    if found.keys() - supported:
        unsupported = ", ".join(sorted(name + suffix for name in found.keys() - supported))
        warnings.warn(f"method={method!r} does not call {unsupported}", UserWarning, stacklevel=4)
    calls = {_NAMES[name]: _shown(f, show) for name, f in found.items() if name in supported}
    return Callbacks(**calls) if calls else None


def _shown(f: Callable[..., Any], show: Callable[[Any], Any] | None) -> Callable[..., Any]:
    return f if show is None else lambda t0, y0, dt: f(t0, show(y0), dt)
