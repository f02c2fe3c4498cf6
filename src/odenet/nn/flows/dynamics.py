"""What a flow solves: the state, and beside it the logarithm of the volume and the regularisers' integrals."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, cast, final

import torch
from torch import Tensor

from ...api import checks
from ...api.option_types import SolveOptions
from ...api.solve import Solver
from ...core.leaves import Leaves
from ...core.norms import rms
from ...gradients.gradient import Stats
from .field_check import FieldCheck
from .regularisers import Regulariser
from .traces import Field, Trace

REFUSED = ("event", "save", "save_steps", "dense", "jacobian", "on_failure", "callbacks")
_STEPS = "give step=0.1, say, with a method of constant steps, or controller=odenet.Grid(times)"
# of FlowMatching.sample alone
OF_SAMPLES = {
    "steps": _STEPS,
    "grid": _STEPS,
    "guidance": "guided samples have another density, that of CNF(f) with f(t, x, context) the flow's velocity at "
    "this guidance",
}


@final
class DensityDynamics:
    """(dy/dt, trace of df/dy, integrands) of the state (y, log-volume, integrals)."""

    def __init__(self, field: Field, trace: Trace, regularisers: Sequence[Regulariser] = ()) -> None:
        self.field, self.trace, self.regularisers = field, trace, tuple(regularisers)
        self.frobenius = any(r.needs_frobenius for r in self.regularisers)

    def __call__(
        self, t: Tensor, state: tuple[Tensor, ...], directions: tuple[Tensor, ...], args: tuple[Any, ...]
    ) -> tuple[Tensor, ...]:
        y = state[0]
        at = self.trace(self.field, t, y, directions, args, self.frobenius)
        return at.dy, at.trace, *(r.integrand(self.field, t, y, at, args) for r in self.regularisers)


@final
class SampleDynamics:
    """dy/dt alone."""

    def __init__(self, field: Field) -> None:
        self.field = field

    def __call__(self, t: Tensor, y: Tensor, args: tuple[Any, ...]) -> Tensor:
        return self.field(t, y, *args)


@final
class StateNorm:
    """The norm of a step's error without the regularisers' integrals. norm: of the first two leaves; None: RMS."""

    def __init__(self, norm: Any, batched: bool) -> None:
        self.norm, self.batched = norm, batched

    def __call__(self, leaves: Leaves) -> Any:
        return rms(leaves[:2], self.batched) if self.norm is None else self.norm(leaves[:2])


@final
class FlowSolver:
    """The solves of one field: with its density, with regularisers too, and of the state alone."""

    def __init__(
        self, field: Field, trace: Trace, regularisers: Mapping[str, tuple[Regulariser, float]], options: SolveOptions
    ) -> None:
        self.field, self.trace, self.names = field, trace, tuple(regularisers)
        self.density = Solver(DensityDynamics(field, trace), **options)
        self.regularised = Solver(
            DensityDynamics(field, trace, [r for r, _ in regularisers.values()]), **_ignoring_integrals(options)
        )
        self.state = Solver(SampleDynamics(field), **options)
        self.check = FieldCheck(field)
        self.stats: Stats | None = None

    def flow(self, y: Tensor, ts: Tensor, args: tuple[Any, ...]) -> Tensor:
        """The state at ts[1] of the solution with y at ts[0], (B, *event)."""
        self.check.arguments(args)
        sol = self.state(y, ts, (args,))
        self._keep(sol.stats)
        return sol.y1

    def flow_with_density(
        self,
        y: Tensor,
        ts: Tensor,
        args: tuple[Any, ...],
        generator: torch.Generator | None,
        regularised: bool = False,
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The state at ts[1], log |det| of the map to it, (B,), and the regularisers' integrals by name."""
        self.check.arguments(args)
        self.check.evaluation(ts[0].to(y.dtype), y, args)
        directions = self.trace.directions(self.field, ts[0].to(y.dtype), y, args, generator)
        zero = y.flatten(1).sum(1) * 0.0 if torch.compiler.is_compiling() else y.new_zeros(len(y))
        names = self.names if regularised else ()
        solver = self.regularised if names else self.density
        sol = solver((y, zero, *(torch.zeros_like(zero) for _ in names)), ts, (directions, args))
        self._keep(sol.stats)
        end, log_det, *integrals = cast("tuple[Tensor, ...]", sol.y1)
        length = (ts[1] - ts[0]).sign().to(y.dtype)
        return end, log_det, {name: length * x for name, x in zip(names, integrals, strict=True)}

    def _keep(self, stats: Stats) -> None:
        if not torch.compiler.is_compiling():
            self.stats = stats.outliving_vmap()


def checked_solve_options(owner: str, options: SolveOptions) -> SolveOptions:
    """The options of a flow's solves. Raises TypeError for those that have no meaning here, or are unknown."""
    refuse_options(owner, options)
    Solver(_never, **options)
    return options


def refuse_options(owner: str, options: Mapping[str, Any]) -> None:
    """Raise TypeError for an option that has no meaning in a flow, or is of another call."""
    for name in options:
        if name in REFUSED:
            raise TypeError(f"{owner} takes no {name}=: it belongs to odenet.solve, which solves the field itself")
        if name in OF_SAMPLES:
            raise TypeError(f"{owner} takes no {name}=: {OF_SAMPLES[name]}")


def _never(t: Tensor, y: Tensor) -> Tensor:
    raise AssertionError("checked, and never called")


def _ignoring_integrals(options: SolveOptions) -> SolveOptions:
    """The same options with a step control that does not see the regularisers' integrals."""
    method = checks.method(options.get("method", "tsit5"))
    controller = checks.controller(options.get("controller"), options.get("step"), method)
    if not controller.adaptive:
        return options
    controller = copy.copy(controller)
    controller.norm = StateNorm(controller.norm, options.get("per_sample", False))
    return {**options, "controller": controller}
