"""What a library is asked to do: solve, and a training step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .problems import Problem

METHOD = "dopri5"  # in every library


@dataclass(frozen=True)
class Output:
    """The results of one call.

    stats: counts of the solve. ys: returns the solution at the output times after the first, (T, B, ...). gradients:
    returns those to `Problem.inputs`, none of a solve without a gradient.
    """

    stats: Mapping[str, Any]
    ys: Callable[[], Tensor]
    gradients: Callable[[], list[Tensor]] = list

    def flat_gradient(self) -> Tensor:
        return torch.cat([x.detach().cpu().flatten() for x in self.gradients()])


Call = Callable[[], Output]


@dataclass(frozen=True)
class Solver:
    """A problem ready to be solved.

    forward: solves without a gradient. train: solves, and computes the gradient of the loss to `Problem.inputs`; None
    where the library has no gradients. note: what differs from the other libraries.
    """

    forward: Call
    train: Call | None
    note: str = ""


@dataclass(frozen=True)
class Contender:
    """A library, and the options that it is used with.

    start: prepares a problem. compiled: the first call compiles, so its time is measured. kinds: the kinds of fields
    that the contender is measured on; None for all.
    """

    label: str
    start: Callable[[Problem], Solver]
    compiled: bool = False
    kinds: tuple[str, ...] | None = None


def torch_solver(
    problem: Problem,
    solve: Callable[[], tuple[Tensor, Mapping[str, Any]]],
    inputs: tuple[Tensor, ...] | None = None,
    note: str = "",
) -> Solver:
    """Return the solver of a library on PyTorch. `solve` returns y at ts[1:], (T, ...), and the counts."""
    inputs = problem.inputs if inputs is None else inputs

    def wait() -> None:
        if problem.y0.is_cuda:
            torch.cuda.synchronize()

    def forward() -> Output:
        with torch.no_grad():
            ys, stats = solve()
        wait()
        return Output(stats, lambda: ys)

    def train() -> Output:
        ys, stats = solve()
        gradients = torch.autograd.grad(ys.square().sum(), inputs)
        wait()
        ys = ys.detach()
        return Output(stats, lambda: ys, lambda: list(gradients))

    return Solver(forward, train, note)
