"""Gauss-Legendre quadrature along a backward solve: the gradient of parameters, kept out of the ODE's state."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from ..core.dense import evaluate
from ..core.leaves import select, spread
from ..engine.advance import Move
from ..engine.observe import Observer
from .augment import CotangentField
from .base import add

# Gauss-Legendre nodes and weights on [0, 1]; n of them integrate polynomials up to degree 2n - 1 exactly.
_GAUSS: dict[int, tuple[tuple[float, ...], tuple[float, ...]]] = {
    1: ((0.5,), (1.0,)),
    2: ((0.21132486540518713, 0.7886751345948129), (0.5, 0.5)),
    3: ((0.1127016653792583, 0.5, 0.8872983346207417), (0.2777777777777778, 0.4444444444444444, 0.2777777777777778)),
    4: (
        (0.06943184420297371, 0.33000947820757187, 0.6699905217924281, 0.9305681557970262),
        (0.17392742256872693, 0.32607257743127307, 0.32607257743127307, 0.17392742256872693),
    ),
}


def nodes_and_weights(order: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """What goes with a solve of this order."""
    return _GAUSS[min(4, (order + 1) // 2)]


@final
class Quadrature(Observer):
    """Sums the integral of a^T df/dtheta over the accepted steps of a backward solve."""

    def __init__(self, field: CotangentField, order: int) -> None:
        self.field = field
        self.nodes, self.weights = nodes_and_weights(order)
        self.total: list[Tensor | None] = [None] * len(field.fixed)

    def see(self, move: Move) -> None:
        if not self.field.fixed:
            return
        accept = move.accept
        if not (bool(accept.any()) if isinstance(accept, Tensor) else accept):
            return
        length = move.time1 - move.time0
        for node, weight in zip(self.nodes, self.weights, strict=True):
            theta = tuple(spread(torch.full_like(length, node), x) for x in move.y)
            state = select(accept, evaluate(move.y, move.polynomial(), theta), move.y)
            time = move.time0 + node * length
            time = torch.where(accept, time, move.time0) if isinstance(accept, Tensor) else time
            y, a = self.field.pair(time, state)
            # the backward solve runs against time: its dt is negative, and the integral runs from t0 to t1
            weighted = tuple(x * spread(-weight * length, x) for x in a)
            weighted = select(accept, weighted, tuple(torch.zeros_like(x) for x in weighted))
            parts = self.field.towards_fixed(time, y, weighted)
            self.total = [add(a, b) for a, b in zip(self.total, parts, strict=True)]
