"""Constant steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from torch import Tensor

from ..core.lanes import Number, isfinite, negate
from .base import Controller, Memory, Verdict, check_times


@final
class ConstantStep(Controller):
    """Steps of size `step`, in the unit of time. The last one before each output time is shortened to end there.

    step_ts, jump_ts: further times that end a step; after a jump time f is evaluated anew.
    """

    adaptive = False
    every_output = True
    stretch = 1.0001

    def __init__(
        self,
        step: float,
        *,
        step_ts: Sequence[float] | Tensor | None = None,
        jump_ts: Sequence[float] | Tensor | None = None,
    ) -> None:
        self.step, self.step_ts, self.jump_ts = float(step), step_ts, jump_ts
        check_times("step_ts", step_ts)
        check_times("jump_ts", jump_ts)
        if not 0.0 < self.step < float("inf"):
            raise ValueError(
                f"step must be a positive, finite size; got {step!r} (the direction of time comes from ts)"
            )

    def __repr__(self) -> str:
        return f"ConstantStep({self.step})"

    def memory(self, h: Number) -> Memory:
        return ()

    def first(self, h: Number) -> Number:
        return h * 0.0 + self.step

    def judge(self, h: Number, ratio: Number, error_order: int, memory: Memory) -> Verdict:
        accept = isfinite(ratio)
        return Verdict(accept, self.first(h), (), negate(accept))
