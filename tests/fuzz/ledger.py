"""What calls came to."""

from __future__ import annotations

import re
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import odenet
from odenet.errors import CaptureError

SOURCE = str(Path(odenet.__file__).parent)

# said in the documentation of what was asked for; every other warning is a finding
KNOWN_WARNINGS = (
    r"gradient='reversible' could not undo the solve",
    r"gradient='reversible': the solution is not accurate",
    r"unexpected options",
    r"implicit_adams: the corrector of the step to .* did not converge",
    r"max_order=\d+ is below 4",
    r"a parameter requires no gradient",
    r"compile=True: solving without compiled code, as eager code is faster for this f here",
)


class Finding(AssertionError):  # noqa: N818 - it is no error of the program
    """Something that the library should not have done."""


def demand(right: bool, what: str) -> None:
    if not right:
        raise Finding(what)


class Ledger:
    """Counts of (entry point, how the call ended)."""

    def __init__(self) -> None:
        self.ends: Counter[tuple[str, str]] = Counter()

    def add(self, entry: str, end: str) -> None:
        self.ends[entry, end] += 1

    def call(self, entry: str, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """A call that has to give a value; what looks at the value raises a `Finding` where it is wrong."""
        out = function(*args, **options)
        self.add(entry, "value")
        return out


def settings() -> tuple[Any, ...]:
    return (
        torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads(), torch.is_inference_mode_enabled(),
        torch.get_rng_state().sum().item(), torch.are_deterministic_algorithms_enabled(), torch.get_default_device(),
    )  # fmt: skip


@contextmanager
def watched(random: bool = False) -> Iterator[None]:
    """No warning but the known ones, and nothing global changed. random: the caller's own function draws numbers."""
    before = settings()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for one in caught:
        known = issubclass(one.category, odenet.ConvergenceWarning)
        demand(known or any(re.search(x, str(one.message)) for x in KNOWN_WARNINGS), f"a warning: {one.message}")
    after = settings()
    demand(random or before == after, f"global settings changed: {before} -> {after}")


def named(text: str, names: tuple[str, ...]) -> str | None:
    """The first of the names in the text."""
    return next((n for n in names if re.search(rf"(?<![\w']){re.escape(n)}(?!\w)", text)), None)


def raised_in(error: BaseException, path: str) -> bool:
    return traceback.extract_tb(error.__traceback__)[-1].filename.startswith(path)


def documented(error: BaseException, names: tuple[str, ...], also: tuple[type[BaseException], ...] = ()) -> str:
    """How an error is entered: its class and the argument that it names. A `Finding` where it is not documented."""
    text = "\n".join([str(error), *getattr(error, "__notes__", ())])
    kind = type(error).__name__
    if isinstance(error, odenet.SolveError):
        demand("The solve failed at t=" in text or "Hint" in text, f"{kind} without a hint: {text}")
        return kind
    allowed = isinstance(error, (TypeError, ValueError, CaptureError, *also)) or type(error) is RuntimeError
    name = named(text, names)
    if not allowed or name is None or not raised_in(error, SOURCE):
        raise Finding(f"{kind} that names none of {', '.join(names)}: {text}") from error
    return f"{kind} naming {name}"
