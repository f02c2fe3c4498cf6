"""Gradient: how a solve is made differentiable."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.leaves import Leaves
from ..engine.drive import Driver, Outcome
from ..engine.integrate import Request
from ..engine.problem import Problem


class Stats(dict[str, Any]):
    """Counts of a solve, by key or as attributes: nfe, accepted, rejected, backward_nfe.

    Ints, or (B,) tensors per sample. nfe: evaluations of f in the forward solve (a sample's own count does not include
    those made after it ended). backward_nfe: evaluations of f in the last backward pass (0 before one, and 0 for
    `backprop`, which keeps the graph instead of evaluating again).
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"stats has {', '.join(self)}; no {name!r}") from None

    @staticmethod
    def of(outcome: Outcome) -> Stats:
        zero = outcome.nfe * 0
        return Stats(nfe=outcome.nfe, accepted=outcome.accepted, rejected=outcome.rejected, backward_nfe=zero)


@dataclass
class Trajectory:
    """A differentiable solution. dense: times (m,) or (B, m) -> leaves, where it was asked for."""

    ys: Leaves
    y1: Leaves
    dense: Callable[[Tensor], Leaves] | None
    outcome: Outcome
    stats: Stats


class Gradient(ABC):
    """A way to differentiate a solve; `name` is how `solve(gradient=...)` knows it."""

    name: str

    @abstractmethod
    def run(self, p: Problem, driver: Driver, request: Request) -> Trajectory: ...


Pullback = Callable[[Sequence[Tensor | None]], Sequence[Tensor | None]]


class _Attach(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pull: Pullback, name: str, outputs: list[Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.pull, ctx.name = pull, name
        ctx.save_for_backward(*inputs)  # so that autograd notices inputs changed in place before the backward pass
        ctx.set_materialize_grads(False)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                f"gradient={ctx.name!r} gives first derivatives only, and this backward pass was asked for with "
                "create_graph=True. Use gradient='backprop' for derivatives of derivatives."
            )
        _ = ctx.saved_tensors
        return (None, None, None, *ctx.pull(cotangents))


def attach(pull: Pullback, name: str, outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """`outputs` (already computed, detached) as differentiable functions of `inputs`; `pull` maps cotangents back.

    They come back as aliases: `pull` may hold what was given, and would hold itself through the graph of the results, a
    circle that no garbage collector sees.
    """
    return _Attach.apply(pull, name, [x.detach() for x in outputs], *inputs)


def add(total: Tensor | None, part: Tensor | None) -> Tensor | None:
    if part is None or total is None:
        return total if part is None else part
    return total + part
