"""Whether compiled code is faster than eager code: measured at the first use of each f, method and shape.

Most compiled solves are several times as fast. A convolution is the same library call either way, and Inductor may
order memory around it in a way that costs more than the rest gains; it may also compute an intermediate tensor anew
for each of its uses (seen without gradients, for products of a matrix with a batch of tangents).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..core.leaves import as_graph_inputs
from ..engine.integrate import Request
from ..engine.problem import Problem
from ..gradients.gradient import Gradient, Trajectory
from .field_graph import FieldGraph, NotCompilableError

CLEAR_SPEEDUP = 1.5  # of one measurement
NEGLIGIBLE = 2e-3  # seconds: a solve this short says little about longer ones with the same f

_results: WeakKeyDictionary[FieldGraph, dict[tuple[Any, ...], str | None]] = WeakKeyDictionary()

SolveFunction = Callable[[Problem, Request], Trajectory]


class Wanted(NamedTuple):
    """Results that a library is made for."""

    gradient: bool
    dense: bool


def refuse_if_slower(
    graph: FieldGraph, p: Problem, how: Gradient, captures: Sequence[Tensor], wanted: Wanted, compiled: SolveFunction
) -> None:
    """Raise NotCompilableError if eager code was faster for this f, method, shapes and results."""
    shapes = tuple(y.shape for y in p.y0)
    key = (p.method.name, shapes, wanted, torch.get_num_threads())
    results = _results.setdefault(graph, {})
    if key not in results:
        tolerance = 1.05 if graph.largest_product == math.inf else 1.5  # of a convolution, and of the others
        results[key] = _measure(p, how, captures, wanted, compiled, tolerance)
    reason = results[key]
    if reason is not None:
        raise NotCompilableError(reason)


def _measure(
    p: Problem, how: Gradient, captures: Sequence[Tensor], wanted: Wanted, compiled: SolveFunction, tolerance: float
) -> str | None:
    """Why eager code is to be used, or None. tolerance: how much slower a busy machine may make compiled code.

    What is measured is what the caller wants, so that it compiles no library that serves the measurement alone.
    """
    y0 = as_graph_inputs(p.y0) if wanted.gradient else p.y0
    q = replace(p, y0=y0)
    inputs = [*y0, *(x for x in captures if x.requires_grad)]

    def synchronize() -> None:
        if y0[0].device.type == "cuda":
            torch.cuda.synchronize(y0[0].device)

    def seconds(solve: SolveFunction) -> float:
        synchronize()
        start = time.perf_counter()
        result = solve(q, Request(dense=wanted.dense))
        if wanted.gradient:
            # captures may share a graph that belongs to the caller
            torch.autograd.grad([y.sum() for y in result.y1], inputs, allow_unused=True, retain_graph=True)
        synchronize()
        return time.perf_counter() - start

    seconds(compiled)  # loads or compiles
    ours, eager = seconds(compiled), seconds(how.run)
    if CLEAR_SPEEDUP * ours <= eager:  # the first eager call takes longer than the next, but not by that much
        return None
    ours = min(ours, seconds(compiled))
    eager = min(seconds(how.run) for _ in range(2))
    if ours <= tolerance * eager or ours - eager < NEGLIGIBLE:
        return None
    return f"eager code is faster for this f here ({1e3 * eager:.1f} ms against {1e3 * ours:.1f})"
