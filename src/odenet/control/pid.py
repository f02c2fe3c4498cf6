"""PID step-size control; I and PI control are settings of it."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from ..core.given import function, number
from ..core.lanes import Number, clip, coarse, isfinite, maximum, minimum, negate, where
from ..core.portable import described
from .base import Controller, Memory, Norm, Times, Verdict, check_times

_STRONGEST = 10.0  # of the coefficients: _SMALLEST to its third power is still far from overflow
_SMALLEST = 1e-10  # a ratio below this says "far within the tolerance"; dividing by it would overflow


@final
class PID(Controller):
    """Soderlind's PID controller (Soderlind 2003, "Digital filters in adaptive time-stepping", table 1).

    With r_n the error of step n in units of the tolerance and k the order of the estimate, the next step is
    h * safety * r_n^(-b1/k) * r_(n-1)^(-b2/k) * r_(n-2)^(-b3/k), b1 = p + i + d, b2 = -(p + 2d), b3 = d, the factor
    limited to [factor_min, factor_max].

    pcoeff, icoeff, dcoeff: (0, 1, 0) is the I controller of most codes; (0.4, 0.3, 0) is Hairer & Wanner's PI.
    min_step, max_step: limits of the step size, in the unit of time. A step of at most min_step is accepted whatever
        its error, unless a value is not finite.
    first_step: size of the first attempt; by default Hairer's guess.
    step_ts: times that end a step. jump_ts: the same, and f (or its derivative) jumps there: it is evaluated just
        before for the step that ends there, and anew just after. Both: times, or a callable from ts to times.
    norm: callable that takes the leaves of error / tolerance and gives a number (a lane with per_sample); default RMS.
    """

    adaptive = True
    every_output = False
    stretch = 1.01

    def __init__(
        self,
        pcoeff: float = 0.0,
        icoeff: float = 1.0,
        dcoeff: float = 0.0,
        *,
        safety: float = 0.9,
        factor_min: float = 0.2,
        factor_max: float = 10.0,
        min_step: float = 0.0,
        max_step: float = float("inf"),
        first_step: float | None = None,
        step_ts: Times | None = None,
        jump_ts: Times | None = None,
        norm: Norm | None = None,
    ) -> None:
        pcoeff, icoeff, dcoeff = number("pcoeff", pcoeff), number("icoeff", icoeff), number("dcoeff", dcoeff)
        safety, factor_min = number("safety", safety), number("factor_min", factor_min)
        factor_max, min_step, max_step = (
            number(name, given)
            for name, given in (("factor_max", factor_max), ("min_step", min_step), ("max_step", max_step))
        )
        first_step = None if first_step is None else number("first_step", first_step)
        if norm is not None:
            function("norm", norm, "norm(leaves)")
        if max(abs(pcoeff), abs(icoeff), abs(dcoeff)) > _STRONGEST:
            raise ValueError(
                f"pcoeff, icoeff and dcoeff must lie between -{_STRONGEST} and {_STRONGEST}; got {pcoeff!r}, "
                f"{icoeff!r}, {dcoeff!r}"
            )
        self.pcoeff, self.icoeff, self.dcoeff = pcoeff, icoeff, dcoeff
        self.beta = (pcoeff + icoeff + dcoeff, -(pcoeff + 2 * dcoeff), dcoeff)
        self.safety, self.factor_min, self.factor_max = safety, factor_min, factor_max
        self.min_step, self.max_step, self.first_step = min_step, max_step, first_step
        self.step_ts, self.jump_ts, self.norm = step_ts, jump_ts, norm
        check_times("step_ts", step_ts)
        check_times("jump_ts", jump_ts)
        if not 0.0 < safety <= 1.0:
            raise ValueError(f"safety must lie in (0, 1]; got {safety!r}")
        if not 0.0 < factor_min < 1.0 <= factor_max:
            raise ValueError(
                f"factor_min must lie in (0, 1) and factor_max be at least 1; got {factor_min!r}, {factor_max!r}"
            )
        if max_step <= 0.0:
            raise ValueError(f"max_step must be positive; got max_step={max_step!r}")
        if not 0.0 <= min_step <= max_step:
            raise ValueError(f"min_step must lie in [0, max_step]; got min_step={min_step!r}, max_step={max_step!r}")
        if first_step is not None and not 0.0 < first_step < float("inf"):
            raise ValueError(f"first_step must be positive and finite; got {first_step!r}")

    def __repr__(self) -> str:
        return described(self)

    def memory(self, h: Number) -> Memory:
        one = torch.ones_like(h) if isinstance(h, Tensor) else 1.0
        return (one, one)

    def first(self, h: Number) -> Number:
        if self.first_step is not None:
            h = h * 0.0 + self.first_step
        return clip(h, self.min_step, self.max_step)

    def judge(self, h: Number, ratio: Number, error_order: int, memory: Memory) -> Verdict:
        finite = isfinite(ratio)
        r = coarse(maximum(where(finite, ratio, 1.0), _SMALLEST))
        forced = h <= self.min_step
        accept = finite & ((r <= 1.0) | forced)
        b1, b2, b3 = (b / error_order for b in self.beta)
        factor = self.safety * r**-b1
        if b2 != 0.0 or b3 != 0.0:
            factor = factor * memory[0] ** -b2 * memory[1] ** -b3
        factor = maximum(where(finite, coarse(factor), self.factor_min), self.factor_min)
        # A rejected step must shrink, also where the memory of a PID says otherwise.
        factor = where(accept, minimum(factor, self.factor_max), minimum(factor, self.safety))
        memory = (where(accept, r, memory[0]), where(accept, memory[0], memory[1]))
        failed = negate(finite) & forced
        return Verdict(accept, clip(h * factor, self.min_step, self.max_step), memory, failed)
