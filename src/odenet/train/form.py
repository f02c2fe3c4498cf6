"""Whether a value read from a file has the form of one that we know."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def differs(given: Any, model: Any, where: str = "") -> str | None:
    """In a few words where `given` differs in form from `model`; None where it does not.

    Form: the types, the keys of dicts, the lengths of sequences, shapes and dtypes of tensors. A number, text or None
    in the place of a None will do; `Rows` in the model stands for a table. Nothing in `given` is called, and no more of
    it is visited than the model has places.
    """
    at = where or "it"
    if isinstance(model, Rows):
        return model.differs(given, at)
    if isinstance(model, dict):
        if not isinstance(given, dict):
            return f"{at} is {_kind(given)}, not a dict"
        missing = [k for k in model if k not in given]
        if missing or len(given) != len(model):
            extra = [] if missing else [k for k in given if k not in model]
            return f"{at} lacks {_named(missing[0])}" if missing else f"{at} has {_named(extra[0])}, which is unknown"
        return next((d for k in model if (d := differs(given[k], model[k], f"{where}/{k}"))), None)
    if isinstance(model, (list, tuple)):
        if type(given) is not type(model) or len(given) != len(model):
            return f"{at} is {_kind(given)}, not a {type(model).__name__} of {len(model)}"
        pairs = enumerate(zip(given, model, strict=True))
        return next((d for i, (g, m) in pairs if (d := differs(g, m, f"{where}/{i}"))), None)
    if isinstance(model, Tensor):
        return _tensor(given, model, at)
    if model is None:
        return None if given is None or _scalar(given) else f"{at} is {_kind(given)}, not a number"
    allowed = (int, float) if type(model) is float else (type(model),)
    return None if type(given) in allowed and _scalar(given) else f"{at} is {_kind(given)}, not {_kind(model)}"


def _tensor(given: Any, model: Tensor, at: str) -> str | None:
    if type(given) is not Tensor or given.layout is not torch.strided or given.device.type != "cpu":
        return f"{at} is {_kind(given)}, not a tensor with values"
    if given.dtype != model.dtype or given.shape != model.shape:
        return f"{at} has shape {tuple(given.shape)}, {given.dtype}, and not {tuple(model.shape)}, {model.dtype}"
    return None


def _scalar(given: Any) -> bool:
    return type(given) in (bool, float, str) or (type(given) is int and abs(given) < 2**63)


def _kind(given: Any) -> str:
    return f"of type {type(given).__name__}"


def _named(key: Any) -> str:
    return repr(key)[:60] if type(key) in (str, int) else _kind(key)


class Rows:
    """In a model, a table: a list of at most `longest` dicts from names to numbers, each with all of `columns`."""

    def __init__(self, columns: tuple[str, ...], longest: int) -> None:
        self.columns, self.longest = columns, longest

    def differs(self, given: Any, at: str) -> str | None:
        if type(given) is not list or len(given) > self.longest:
            return f"{at} is {_kind(given)}, not a list of at most {self.longest}"
        for row in given:
            if type(row) is not dict or len(row) > 32 or any(c not in row for c in self.columns):
                return f"{at} has a row without {', '.join(self.columns)}"
            if not all(type(k) is str and k.isidentifier() and type(v) in (int, float) for k, v in row.items()):
                return f"{at} has a value that is not a number"
        return None
