"""The options of `odenet.solve` that models of series take."""

from __future__ import annotations

import inspect

from ..api.checks import known_options
from ..api.option_types import SolveOptions

# what else a solution has, or leaves out, does not reach the caller
_REFUSED = ("event", "dense", "save", "save_steps", "on_failure")


def check_series_options(model: type, options: SolveOptions) -> None:
    """Raise TypeError for an option that is none, ValueError for one that a model of series cannot take.

    model: one of its own keywords may have been meant.
    """
    known = SolveOptions.__annotations__.keys()
    unknown = options.keys() - known
    if unknown:
        known_options(unknown, [*inspect.signature(model).parameters, *known])
    for name in _REFUSED:
        if name in options:
            raise ValueError(f"{name} is no option of {model.__name__}, which needs the states at all times")
