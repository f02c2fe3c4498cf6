"""Controller: accepts or rejects an attempted step and proposes the next step size."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..core.lanes import Flag, Number, isfinite, where
from ..core.leaves import Leaves
from ..core.portable import Settings
from ..methods.base import Wish

_LITTLE = 1.2  # growth that is not worth new factors of a matrix. Hairer & Wanner II, IV.8

Memory = tuple[Number, ...]
Norm = Callable[[Leaves], Tensor]


Times = Sequence[float] | Tensor | Callable[[Tensor], Tensor]
"""Times given beforehand, or made of the output times ts of the solve at hand."""


def check_times(name: str, given: Times | None) -> None:
    """Raise for a `given` that is not finite times, (n,) or one row a sample (B, n)."""
    if given is None or callable(given):
        return
    try:
        times = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError, OverflowError, IndexError):
        raise TypeError(f"{name} must be a sequence or tensor of times; got {given!r}") from None
    if times.ndim not in (1, 2):
        raise ValueError(f"{name} must be a sequence of times, (n,) or (B, n); got {given!r}: write {name}=[...]")
    if times.is_meta or times.layout is not torch.strided:
        raise TypeError(f"{name} must be a dense tensor that holds its values; got {given!r}")
    if times.is_complex() or not bool(torch.isfinite(times.to(torch.float64)).all()):
        raise ValueError(f"{name} must be real and finite; got {given!r}")


def measured(norm: Norm, leaves: Leaves) -> Tensor | float:
    """The norm of the leaves, which has to be a number."""
    out = norm(leaves)
    if not isinstance(out, (Tensor, float, int)):
        raise TypeError(f"norm must return a number, or a tensor of one (with per_sample of one a sample); got {out!r}")
    return out


class Attempt(NamedTuple):
    """What a controller decides on, in lanes (see core/lanes.py): positive numbers, or tensors of shape (B,).

    h: size of the step. ratio: its error in units of the tolerance; 0 without an estimate, and not finite where a value
    was not, or the method could not solve its equations. order: k, where the error falls like h^k. wish: what the
    method asks for. rejected: the attempt before was rejected.
    """

    h: Number
    ratio: Number
    order: Number = 1
    wish: Wish | None = None
    rejected: Flag = False

    def most(self, factor: float) -> Number:
        """The largest factor of the next step size: right after a rejection 1. Hairer, Norsett & Wanner I, II.4."""
        return where(self.rejected, 1.0, factor)

    def wished(self, accept: Flag, factor: Number) -> Number:
        """The factor of the next step size, as the method wishes."""
        if self.wish is None:
            return factor
        factor = where(isfinite(self.ratio), factor * self.wish.most, self.wish.most)
        return where(accept & self.wish.hold & (factor < _LITTLE), 1.0, factor)


class Decision(NamedTuple):
    """accept: keep this step. h: size of the next attempt. memory: for the next decision. failed: give up."""

    accept: Flag
    h: Number
    memory: Memory
    failed: Flag


class Controller(Settings, ABC):
    """Works on lanes (see core/lanes.py): h and ratio are positive numbers, or tensors of shape (B,).

    adaptive: asks the method for an error estimate and the engine for the first step.
    every_output: each time in `ts` is the end of a step, not only the last.
    finite: without an error estimate a step is accepted only where the new state is finite; else always, unseen.
    perturb: f is evaluated just after the start of each step, and just before its end, as if it jumped at both.
    stretch: a step is lengthened by up to this factor rather than leave a sliver before a time that must be hit.
    """

    adaptive: bool
    every_output: bool
    stretch: float
    step_ts: Times | None = None
    jump_ts: Times | None = None
    norm: Norm | None = None
    perturb: bool = False
    finite: bool = True

    @abstractmethod
    def memory(self, h: Number) -> Memory:
        """What the first decision starts from; h gives the kind and shape of a lane."""

    @abstractmethod
    def first(self, h: Number) -> Number:
        """The first step size, from the engine's guess h."""

    def always(self) -> Decision | None:
        """The decision on any step of a joint solve, where that is always the same."""
        return None

    @abstractmethod
    def decide(self, attempt: Attempt, memory: Memory) -> Decision: ...
