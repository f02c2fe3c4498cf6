"""What a field costs by itself, and what a solve cannot cost less than."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..fields import Problem
from ..passes import Call, Pass

STAGES = 6  # of dopri5: a step's first slope is the last one of the step before
F, VJP = "one f", "one f and its VJP"


def calls(problem: Problem) -> dict[str, Call]:
    """f alone, and f with its vector-Jacobian product, evaluated eagerly at y0: to be timed."""
    y, inputs = problem.y0, problem.inputs
    t = problem.ts[0]
    if problem.field.per_sample:
        t = t.expand(len(y))
    cotangent = torch.ones_like(y)

    def done(x: Any) -> Pass:
        if y.is_cuda:
            torch.cuda.synchronize()
        return Pass(lambda: list(x), {})

    def f() -> Pass:
        with torch.no_grad():
            return done([problem.f(t, y, *problem.args)])

    def vjp() -> Pass:
        return done(torch.autograd.grad(problem.f(t, y, *problem.args), inputs, cotangent, allow_unused=True))

    return {F: f, VJP: vjp}


def mean(count: Any) -> float:
    """Of a count that may be one for each sample."""
    return float(count.double().mean()) if isinstance(count, Tensor) else float(count)


@dataclass(frozen=True)
class Floor:
    """Seconds. forward: nfe times f. train: accepted steps times stages times f and its VJP on top.

    A batch with steps of its own for each sample is counted by the samples' mean.
    """

    f: float
    vjp: float
    forward: float
    train: float

    @staticmethod
    def of(f: float, vjp: float, nfe: float, accepted: float) -> Floor:
        forward = nfe * f
        return Floor(f, vjp, forward, forward + accepted * STAGES * vjp)
