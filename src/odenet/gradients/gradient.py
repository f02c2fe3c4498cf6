"""Gradient: how a solve is made differentiable."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from ..core.leaves import Leaves, forward_mode
from ..core.serialization import constants, settings_repr
from ..core.torch_func import outlasting, transforming, vmapping
from ..core.vector_field import VectorField
from ..engine.dense_solution import Interpolation, JoinedInterpolation
from ..engine.integrate import Request, integrate
from ..engine.loop import Outcome
from ..engine.output_recorder import OutputRecorder
from ..engine.problem import Problem
from ..engine.vmapped import VmapRecorder
from ..errors import CaptureError
from ..methods.method import StagewiseMethod

COUNTS = ("nfe", "accepted", "rejected", "njev", "nlu")  # of the forward solve


class Stats(dict[str, Any]):
    """Counts of a solve, by key or as attributes: nfe, accepted, rejected, njev, nlu, backward_nfe.

    Ints, or (B,) tensors per sample. nfe: evaluations of f in the forward solve (a sample's own count does not include
    those made after it ended, or had converged in an implicit step). njev, nlu: Jacobians and factorisations of an
    implicit method in the forward solve; each Jacobian is one of the evaluations. backward_nfe: evaluations of f in the
    last backward pass (0 before one, and 0 for `backprop`, which keeps the graph instead of evaluating again).
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"stats has {', '.join(self)}; no {name!r}") from None

    def __reduce__(self) -> tuple[Any, ...]:
        """The counts alone, as constants: what a sum is of stays where it is."""
        return Stats, (constants(dict(self)),)

    def __copy__(self) -> Stats:
        return Stats(self)

    def kept(self) -> Stats:
        """Counts that can be kept: inside `torch.func.vmap` those of all lanes, which outlive it."""
        return Stats({k: outlasting(v) for k, v in self.items()}) if vmapping() else self

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        for total in self.__dict__.get("totals", ()):
            total()

    @staticmethod
    def joined(parts: list[Stats]) -> Stats:
        """The sums over solves one after another; a backward pass of one of them counts here as well."""
        whole = Stats(parts[0])

        def total() -> None:
            for key in (*COUNTS, "backward_nfe"):
                dict.__setitem__(whole, key, sum(part[key] for part in parts[1:]) + parts[0][key])

        total()
        for part in parts:
            part.__dict__["totals"] = (total,)
        return whole

    @staticmethod
    def of(outcome: Outcome) -> Stats:
        zero = outcome.nfe * 0
        counts = {key: getattr(outcome, key) + zero for key in COUNTS}
        return Stats(counts, backward_nfe=zero)


@dataclass
class Trajectory:
    """A differentiable solution. dense: times (m,) or (B, m) -> leaves, where it was asked for.

    pieces: the same without derivatives, where `dense` is not that itself. field: f as it was evaluated, where it may
    have drawn random numbers that another solve is to draw again.
    """

    ys: Leaves
    y1: Leaves
    dense: Callable[[Tensor], Leaves] | None
    outcome: Outcome
    stats: Stats
    pieces: Interpolation | JoinedInterpolation | None = None
    field: VectorField | None = None

    def __post_init__(self) -> None:
        if isinstance(self.dense, (Interpolation, JoinedInterpolation)) and self.pieces is None:
            self.pieces = self.dense

    def changed(self, change: Callable[[Leaves], Leaves]) -> Trajectory:
        """The same with all its states changed."""
        dense = self.dense
        there = None if dense is None else lambda t: change(dense(t))
        return replace(self, ys=change(self.ys), y1=change(self.y1), dense=there)


class Gradient(ABC):
    """A way to differentiate a solve; `name` is how `solve(gradient=...)` knows it."""

    name: str

    def __repr__(self) -> str:
        return settings_repr(self)

    @abstractmethod
    def run(self, p: Problem, request: Request) -> Trajectory: ...


def direct() -> bool:
    """Whether the solver's own operations are to be run as they are.

    So it is without grad mode, and where forward-mode differentiation (`torch.autograd.forward_ad`) or a transform of
    `torch.func` is under way: derivatives then pass through every operation, exactly, whatever the gradient.
    """
    return not torch.is_grad_enabled() or forward_mode() or transforming()


def solve_plain(p: Problem, request: Request) -> Trajectory:
    """Integrate in the caller's grad mode."""
    smooth = p.method.twice_differentiable()
    if smooth is not p.method:
        p = replace(p, method=smooth)
    solved = integrate(p, request, VmapRecorder(p) if p.traced else OutputRecorder(p))
    dense = Interpolation.from_pieces(p, solved.pieces)
    return Trajectory(solved.ys, solved.y1, dense, solved.outcome, Stats.of(solved.outcome))


def refuse_random(p: Problem, f: VectorField, replayed: bool) -> None:
    """Raise CaptureError where f draws random numbers and a backward pass would draw others.

    f: that was evaluated. replayed: whether steps are taken again as they were.
    """
    if not f.random or (replayed and isinstance(p.method, StagewiseMethod) and p.stops.jumps is None):
        return
    raise CaptureError(
        "f draws random numbers (as Dropout does in training), and this choice of `gradient`, method or jump times "
        "evaluates it anew for the backward pass, with other numbers: the gradient would be of another solve. Draw "
        "them once, outside f, and hand them over through `args`; or use f.eval(), gradient='backprop', or "
        "gradient='discrete' with an explicit Runge-Kutta method and without jump_ts."
    )


def add_counts(totals: Sequence[Tensor | None], parts: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The sums of cotangents, of which there may be none yet on either side."""
    return [b if a is None else a if b is None else a + b for a, b in zip_longest(totals, parts)]
