"""Base class of the gradients, the solution that they return, and its counts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..core.leaves import Leaves, forward_mode
from ..core.serialization import detach_tree, settings_repr
from ..core.torch_func import transforming, vmapping, without_vmap
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
    """Counts of a solve, as keys and as attributes: nfe, accepted, rejected, njev, nlu, backward_nfe.

    Ints in a joint solve, (B,) tensors in a per-sample solve.

    nfe: evaluations of f in the forward solve. Evaluations after a sample has ended, or has converged in an implicit
        step, do not count for that sample.
    njev, nlu: Jacobians and factorisations of an implicit method in the forward solve; each Jacobian also counts as one
        evaluation.
    backward_nfe: evaluations of f in the last backward pass; 0 before the first one, and 0 for `backprop`, which stores
        the graph instead of evaluating again.
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"stats has {', '.join(self)}; no {name!r}") from None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the counts as constants, without the functions that update sums of them."""
        return Stats, (detach_tree(dict(self)),)

    def __copy__(self) -> Stats:
        return Stats(self)

    def outliving_vmap(self) -> Stats:
        """Counts that stay valid after `torch.func.vmap` returns: inside it, those of all samples."""
        return Stats({k: without_vmap(v) for k, v in self.items()}) if vmapping() else self

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        for update in self.__dict__.get("listeners", ()):
            update()

    @staticmethod
    def summed(stats: list[Stats]) -> Stats:
        """Sums of the counts of consecutive solves; a later backward pass of one of them updates the sums."""
        sums = Stats(stats[0])

        def update() -> None:
            for key in (*COUNTS, "backward_nfe"):
                dict.__setitem__(sums, key, sum(segment[key] for segment in stats[1:]) + stats[0][key])

        update()
        for segment in stats:
            segment.__dict__["listeners"] = (update,)
        return sums

    @staticmethod
    def from_outcome(outcome: Outcome) -> Stats:
        zero = outcome.nfe * 0
        counts = {key: getattr(outcome, key) + zero for key in COUNTS}
        return Stats(counts, backward_nfe=zero)


@dataclass
class Trajectory:
    """A differentiable solution.

    ys, y1: leaves of the outputs, (T, ...) or (B, T, ...), and of the last state.
    dense: maps times (m,) or (B, m) to leaves (m, ...) or (B, m, ...); None without dense=True.
    dense_values: dense output without derivatives, where `dense` is not an interpolation itself.
    field: the f that was evaluated; a second solve replays its random states if it drew random numbers.
    """

    ys: Leaves
    y1: Leaves
    dense: Callable[[Tensor], Leaves] | None
    outcome: Outcome
    stats: Stats
    dense_values: Interpolation | JoinedInterpolation | None = None
    field: VectorField | None = None

    def __post_init__(self) -> None:
        if isinstance(self.dense, (Interpolation, JoinedInterpolation)) and self.dense_values is None:
            self.dense_values = self.dense

    def map_states(self, transform: Callable[[Leaves], Leaves]) -> Trajectory:
        """The same trajectory with all its states transformed."""
        dense = self.dense
        mapped_dense = None if dense is None else lambda t: transform(dense(t))
        return replace(self, ys=transform(self.ys), y1=transform(self.y1), dense=mapped_dense)


class Gradient(ABC):
    """A way to differentiate a solve; `solve(gradient=name)` selects it by `name`.

    exact: the derivative of the numerical solution, to rounding; False: an approximation of the derivative of the true
        solution.
    """

    name: str
    exact: ClassVar[bool] = True

    def __repr__(self) -> str:
        return settings_repr(self)

    @abstractmethod
    def run(self, p: Problem, request: Request) -> Trajectory: ...


def gradient_bypassed() -> bool:
    """True if the solver's own operations run as they are, whatever the gradient.

    That is so without grad mode, and under forward-mode autograd (`torch.autograd.forward_ad`) or a `torch.func`
    transform: derivatives then pass through every operation, exactly.
    """
    return not torch.is_grad_enabled() or forward_mode() or transforming()


def solve_plain(p: Problem, request: Request) -> Trajectory:
    """Integrate in the caller's grad mode, with the solver's own operations."""
    method = p.method.twice_differentiable()
    if method is not p.method:
        p = replace(p, method=method)
    solved = integrate(p, request, VmapRecorder(p) if p.traced else OutputRecorder(p))
    dense = Interpolation.from_pieces(p, solved.pieces)
    return Trajectory(solved.ys, solved.y1, dense, solved.outcome, Stats.from_outcome(solved.outcome))


def refuse_random(p: Problem, f: VectorField, replayed: bool) -> None:
    """Raise CaptureError if f draws random numbers and the backward pass would draw different ones.

    f: the field that the forward solve evaluated.
    replayed: True if the backward pass replays recorded steps.
    """
    if not f.random or (replayed and isinstance(p.method, StagewiseMethod) and p.stops.jumps is None):
        return
    raise CaptureError(
        "f draws random numbers (as Dropout does in training), and this choice of `gradient`, method or jump times "
        "evaluates it again in the backward pass, with different numbers: the gradient would be that of another "
        "solve. Draw them once, outside f, and pass them through `args`; or use f.eval(), gradient='backprop', or "
        "gradient='discrete' with an explicit Runge-Kutta method and without jump_ts."
    )


def add_cotangents(sums: Sequence[Tensor | None], terms: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Elementwise sums of two lists of cotangents; None is zero, and the lists may differ in length."""
    return [b if a is None else a if b is None else a + b for a, b in zip_longest(sums, terms)]
