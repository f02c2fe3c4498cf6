"""Whether compiled code is the faster one: measured at the first use of each f, method and shape.

Most compiled solves are several times as fast. Convolutions are calls of the same library either way, and Inductor may
order memory around them in a way that costs more than the rest gains; and it may compute an intermediate anew for each
of its uses (seen without gradients, for products of a matrix with a batch of tangents).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..core.leaves import new_leaves
from ..engine.integrate import Request
from ..engine.problem import Problem
from ..gradients.base import Gradient, Trajectory
from .capture import FieldGraph, NotCompilableError

CLEARLY = 1.5
NOTHING = 2e-3  # seconds: a solve this short says little about longer ones with the same f

_judged: WeakKeyDictionary[FieldGraph, dict[tuple[Any, ...], str | None]] = WeakKeyDictionary()

Way = Callable[[Problem, Request], Trajectory]


def refuse_slower(graph: FieldGraph, p: Problem, how: Gradient, others: Sequence[Tensor], compiled: Way) -> None:
    """Raise NotCompilableError where eager code was faster for this f, method and shapes."""
    shapes = tuple(y.shape for y in p.y0)
    place = (p.method.name, shapes, torch.is_grad_enabled(), torch.get_num_threads())
    judged = _judged.setdefault(graph, {})
    if place not in judged:
        chance = 1.05 if graph.largest == math.inf else 1.5  # of a convolution
        judged[place] = _judge(p, how, others, compiled, chance)
    reason = judged[place]
    if reason is not None:
        raise NotCompilableError(reason)


def _judge(p: Problem, how: Gradient, others: Sequence[Tensor], compiled: Way, chance: float) -> str | None:
    """chance: how much slower compiled code may seem on a busy machine where it is not."""
    recording = torch.is_grad_enabled()
    y0 = new_leaves(p.y0) if recording else p.y0
    q = replace(p, y0=y0)
    wanted = [*y0, *(x for x in others if x.requires_grad)]

    def awaited() -> None:
        if y0[0].device.type == "cuda":
            torch.cuda.synchronize(y0[0].device)

    def taken(way: Way) -> float:
        awaited()
        start = time.perf_counter()
        done = way(q, Request())
        if recording:
            # what f uses may have been computed from one another, by a graph that is the caller's
            torch.autograd.grad([y.sum() for y in done.y1], wanted, allow_unused=True, retain_graph=True)
        awaited()
        return time.perf_counter() - start

    taken(compiled)  # loads, or compiles
    ours, eager = taken(compiled), taken(how.run)
    if CLEARLY * ours <= eager:  # a first eager call takes longer than the next ones, though not by so much
        return None
    ours = min(ours, taken(compiled))
    eager = min(taken(how.run) for _ in range(2))
    if ours <= chance * eager or ours - eager < NOTHING:
        return None
    return f"eager code is faster for this f here ({1e3 * eager:.1f} ms against {1e3 * ours:.1f})"
