"""What a contender can be asked to do: a forward pass alone, and a training step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..fields import Problem
from ..passes import Call, Pass

METHOD = "dopri5"  # in every library


@dataclass(frozen=True)
class Runs:
    """forward: solve, no gradient. train: solve, and the gradient of the loss to all of `Problem.inputs`.

    train: None where a library has no gradients. note: what is different about this contender.
    """

    forward: Call
    train: Call | None
    note: str = ""


@dataclass(frozen=True)
class Contender:
    """A way to solve, by its label.

    compiled: its first call compiles, so a cold start is worth measuring. kinds: of fields that it is compared on; None
    for all.
    """

    label: str
    start: Callable[[Problem], Runs]
    compiled: bool = False
    kinds: tuple[str, ...] | None = None


def torch_runs(
    problem: Problem,
    solve: Callable[[], tuple[Tensor, Mapping[str, Any]]],
    inputs: tuple[Tensor, ...] | None = None,
    note: str = "",
) -> Runs:
    """For a library on PyTorch: `solve` gives y at ts[1:], (T, ...), and the counts."""
    inputs = problem.inputs if inputs is None else inputs
    cuda = problem.y0.is_cuda

    def forward() -> Pass:
        with torch.no_grad():
            ys, stats = solve()
        if cuda:
            torch.cuda.synchronize()
        return Pass(list, stats, lambda: ys)

    def train() -> Pass:
        ys, stats = solve()
        grads = torch.autograd.grad(ys.square().sum(), inputs)
        if cuda:
            torch.cuda.synchronize()
        ys = ys.detach()
        return Pass(lambda: list(grads), stats, lambda: ys)

    return Runs(forward, train, note)


class Counted:
    """f(t, y, *args) as f(t, y), and how often it was called: for libraries that do not count."""

    def __init__(self, problem: Problem) -> None:
        self.f, self.args, self.calls = problem.f, problem.args, 0

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        return self.f(t, y, *self.args)
