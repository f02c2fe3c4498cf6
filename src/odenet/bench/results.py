"""What the parts of a benchmark measure. A note says why a number is missing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

Tell = Callable[[str, int, int], None]
"""Called as tell(part, done, total) while a part is measured."""


@dataclass(frozen=True)
class Memory:
    """Growth of the peak memory by one forward and backward pass, in bytes.

    tight: whether the allocator was told to give freed memory back at once, so that the number is what tensors need.
    """

    label: str
    steps: int
    tight: bool
    growth: int | None
    target_mib: float | None
    note: str = ""


@dataclass(frozen=True)
class Exactness:
    """Relative errors (2-norm) of the gradients to y0, args and ts. reference: what they are compared with."""

    label: str
    case: str
    reference: str
    errors: tuple[float, float, float] | None
    target: float | None
    note: str = ""


@dataclass(frozen=True)
class Cost:
    """Wall time of one forward and backward pass.

    seconds, fastest, slowest: median and range of the turns. ratio, ratio_again: median over the turns, to the
    contenders BASE and AGAIN in the same turn. nfe, backward_nfe, checkpoints: None where the library does not say.
    difference: of its gradients from the base's, relative, all in one 2-norm.
    """

    size: str
    label: str
    seconds: float | None = None
    fastest: float | None = None
    slowest: float | None = None
    ratio: float | None = None
    ratio_again: float | None = None
    target: float | None = None
    nfe: int | None = None
    backward_nfe: int | None = None
    checkpoints: int | None = None
    difference: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Recomputation:
    """Steps that a backward pass with `slots` checkpoints takes again only to come to a state, and their minimum."""

    steps: int
    slots: int
    recomputed: float | None
    optimum: int | None
    note: str = ""


@dataclass(frozen=True)
class Results:
    """All parts of `odenet bench gradients`."""

    memory: list[Memory]
    exactness: list[Exactness]
    cost: list[Cost]
    recomputation: list[Recomputation]


class DoesNotApplyError(Exception):
    """A contender cannot be asked for this, or not fairly; the message says why."""


def attempt(work: Callable[[], T]) -> tuple[T | None, str]:
    """What `work` gives, or None and why it failed, in one line."""
    try:
        return work(), ""
    except ImportError as error:
        return None, f"not installed: {error.name}"
    except DoesNotApplyError as error:
        return None, str(error)
    except Exception as error:  # one contender that fails is a note in its row, and no end of a long run
        lines = str(error).strip().splitlines()
        return None, f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__
