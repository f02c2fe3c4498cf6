"""Controller: accepts or rejects an attempted step and proposes the next step size."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from ..core.lanes import Flag, Number
from ..core.leaves import Leaves

Memory = tuple[Number, ...]
Norm = Callable[[Leaves], Tensor]


class Verdict(NamedTuple):
    """accept: keep this step. h: size of the next attempt. memory: for the next verdict. failed: give up."""

    accept: Flag
    h: Number
    memory: Memory
    failed: Flag


class Controller(ABC):
    """Works on lanes (see core/lanes.py): h and ratio are positive numbers, or tensors of shape (B,).

    adaptive: asks the method for an error estimate and the engine for the first step.
    every_output: each time in `ts` is the end of a step, not only the last.
    stretch: a step is lengthened by up to this factor rather than leave a sliver before a time that must be hit.
    """

    adaptive: bool
    every_output: bool
    stretch: float
    step_ts: Sequence[float] | Tensor | None = None
    jump_ts: Sequence[float] | Tensor | None = None
    norm: Norm | None = None

    @abstractmethod
    def memory(self, h: Number) -> Memory:
        """What the first verdict remembers; h gives the kind and shape of a lane."""

    @abstractmethod
    def first(self, h: Number) -> Number:
        """The first step size, from the engine's guess h."""

    @abstractmethod
    def judge(self, h: Number, ratio: Number, error_order: int, memory: Memory) -> Verdict:
        """`ratio`: the error in units of the tolerance (without an estimate 0); not finite when a value was not."""
