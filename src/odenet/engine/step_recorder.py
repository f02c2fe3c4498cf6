"""The accepted steps of a solve: their end times, sizes and states."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from ..core.leaves import Leaves, select
from ..core.scalars import any_true
from .observer import Observer
from .problem import Problem
from .step_attempt import StepAttempt


@dataclass(frozen=True)
class Steps:
    """The N accepted steps of a solve, as constants.

    t: their end times, (N,), or (B, N) with per_sample. h: their sizes, of the same shape, positive. y: the states at
    t, with the axes of t first, or `save` of them. count: N, or (B,) with per_sample; a sample with fewer steps than
    others repeats its last t and y, with h = 0.
    """

    t: Tensor
    h: Tensor
    y: Any
    count: int | Tensor


@final
class StepRecorder(Observer):
    """Records the end of every accepted step."""

    whole_batch_first: ClassVar[bool] = True

    def __init__(self) -> None:
        self.rows: list[tuple[Tensor, Tensor, Tensor, Leaves]] = []  # sample numbers, t, h, y

    @torch.no_grad()
    def observe(self, attempt: StepAttempt) -> None:
        p, accept = attempt.problem, attempt.accept
        t, h = attempt.time1.detach(), (attempt.time1 - attempt.time0).detach().abs()
        if not any_true(accept):
            return
        y = select(accept, attempt.step.y, attempt.y)
        if p.f.save is not None:
            end = torch.where(accept, t, attempt.time0.detach()) if isinstance(accept, Tensor) else t
            y = p.f.save_output(end, tuple(x.detach() for x in y))
        if isinstance(accept, Tensor):
            rows = accept.nonzero()[:, 0]
        else:
            t, h, *y = (x.unsqueeze(0) for x in (t, h, *y))
            rows = torch.zeros_like(t, dtype=torch.int64)
        self.rows.append((p.samples.sample_numbers(rows), t[rows], h[rows], tuple(x.detach()[rows] for x in y)))

    @torch.no_grad()
    def steps(self, p: Problem, pack: Callable[[Leaves], Any], dtype: torch.dtype) -> Steps:
        """The recorded steps. p: the problem with all its samples. dtype: of the caller's times."""
        start = p.ts.detach()[..., 0].reshape(-1)
        first = p.y0 if p.f.save is None else p.f.save_output(p.ts.detach()[..., 0], p.y0)
        first = tuple(x.detach() if p.batched else x.detach()[None] for x in first)
        # The rows of a sample in their order, its start before them: the start pads a sample that takes no step.
        numbers = torch.cat([torch.arange(len(start), device=start.device), *(r[0] for r in self.rows)])
        order, lengths = numbers.argsort(stable=True), torch.bincount(numbers)
        count, begin = lengths - 1, lengths.cumsum(0) - lengths
        column = torch.arange(1, int(count.max()) + 1, device=start.device)
        index = order[begin.unsqueeze(1) + torch.minimum(column, count.unsqueeze(1))]
        t = torch.cat([start, *(r[1] for r in self.rows)])[index]
        h = torch.cat([torch.zeros_like(start), *(r[2] for r in self.rows)])[index]
        h = torch.where(column <= count.unsqueeze(1), h, 0.0)
        y = tuple(torch.cat([a, *(r[3][i] for r in self.rows)])[index] for i, a in enumerate(first))
        if p.batched:
            return Steps(t.to(dtype), h.to(dtype), pack(y), count)
        return Steps(t[0].to(dtype), h[0].to(dtype), pack(tuple(x[0] for x in y)), int(count))
