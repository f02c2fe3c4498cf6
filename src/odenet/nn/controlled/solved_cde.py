"""Controlled equations that `odenet.solve` solves."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...api import checks
from ...api.option_types import SolveOptions
from ...api.solve import Solver, solve
from ...control import Controller
from ...core.serialization import short_repr
from ...core.validate import function_of
from ...gradients.gradient import Stats
from ...series.control_path import ControlPath, derivative_pieces, piece_value, piece_value_of_each
from ...series.series import Series
from ..series_options import check_series_options
from .cde_fields import CDEField, LowRankCDEField, times_derivative
from .controlled_model import ControlledModel, ControlName

_DEFAULTS: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-6}
# a graph below this size is kept: a backward pass through it takes half the time of one that evaluates f again
_SHORT_GRAPH = 2**26
_STAGES, _MATRICES = 6, 4  # of a step, and tensors of the matrix's size that an evaluation keeps


class SolvedCDE(ControlledModel):
    """Base of models dz = field(s, z) dX that a solve in s gives; its steps end at the knots of the path.

    field: f(s, z), (N, hidden, channels of the path), or a module with prod(s, z, dX), (N, hidden); s is () or (N,) for
    N states z of any samples. None: a `CDEField`, or with rank= a `LowRankCDEField`. solve_options: of `odenet.solve`,
    by default rtol=1e-4, atol=1e-6, and gradient="backprop" where the graph is small. stats: counts of the last solve.
    """

    def __init__(
        self,
        channels: int,
        hidden: int,
        out: int | None,
        static: int,
        control: ControlName | Callable[[Series], ControlPath],
        online: bool,
        counts: bool,
        path_channels: int | None,
        field: nn.Module | None,
        rank: int | None,
        solve_options: SolveOptions,
    ) -> None:
        super().__init__(channels, hidden, out, static, control, online, counts, path_channels)
        if field is None:
            width = self.path_channels
            field = CDEField(hidden, width) if rank is None else LowRankCDEField(hidden, width, rank)
        elif rank is not None:
            raise ValueError("rank is that of the library's own field; give field or rank")
        if not hasattr(field, "prod"):
            function_of("field", field, "field(s, z)", 2)
        self.field = field
        check_series_options(type(self), solve_options)
        Solver(self._slope, **solve_options)  # raises for a wrong option
        self.solve_options = cast(SolveOptions, _DEFAULTS | solve_options)
        self.any_shape = not solve_options.get("compile")
        self.stats: Stats | None = None

    def drive(self, path: ControlPath, z0: Tensor, at: Tensor | None, begin: Tensor | None = None) -> Tensor:
        # first, as it reads values: where that breaks a graph of torch.compile, options set before would be lost
        knots, control = path.knots, _stopping_at_knots(self.solve_options, path)
        options: dict[str, Any] = {k: v for k, v in self.solve_options.items() if k != "step"} | {"controller": control}
        if at is None:
            ts = knots[[0, -1]]
        else:
            ts = torch.cat([knots[:1].expand(*at.shape[:-1], 1), at, _next_whole(knots, at)], -1)
        if ts.ndim == 2:
            options["per_sample"] = True
        if not options.get("compile") and self._graph_bytes(path, z0) < _SHORT_GRAPH:
            options.setdefault("gradient", "backprop")
        # every piece may need some steps: a limit for all paths would refuse long ones
        options.setdefault("max_steps", 10_000 + 100 * len(knots))
        slope, args = self._slope, (knots, derivative_pieces(path.pieces))
        if options.get("per_sample"):  # args of which samples are taken have these first, and others do not
            begin = torch.zeros_like(z0[:, 0].real) if begin is None else begin
            slope, args = self._slope_of_each, (knots[None], args[1].movedim(2, 0).contiguous(), begin)
        sol = solve(slope, z0, ts, args=args, **cast(SolveOptions, options))
        self.stats = sol.stats
        if at is None:
            return sol.y1
        ys = sol.ys if options.get("per_sample") else sol.ys.movedim(0, 1)
        return ys[:, 1:-1]

    def _graph_bytes(self, path: ControlPath, z0: Tensor) -> int:
        """About the least memory of the graph of a solve: the field's matrices of a step for each piece of the path."""
        matrices = z0.numel() * self.path_channels * z0.element_size()
        return _STAGES * _MATRICES * matrices * (len(path.knots) - 1)

    def _slope(self, s: Tensor, z: Tensor, knots: Tensor, slopes: Tensor) -> Tensor:
        return times_derivative(self.field, s, z, piece_value(slopes, knots, s))

    def _slope_of_each(self, s: Tensor, z: Tensor, knots: Tensor, slopes: Tensor, begin: Tensor) -> Tensor:
        return times_derivative(self.field, s + begin, z, piece_value_of_each(slopes, knots[0], s))

    def extra_repr(self) -> str:
        options = "".join(f", {k}={short_repr(v)}" for k, v in self.solve_options.items())
        return super().extra_repr() + options


def _next_whole(knots: Tensor, at: Tensor) -> Tensor:
    """(*batch, 1): the first whole s that no one of `at`, (*batch, Q), is behind; at most the last knot."""
    latest = at.detach()[..., -1:]
    return latest.ceil().minimum(knots[-1]).maximum(latest)


def _stopping_at_knots(options: SolveOptions, path: ControlPath) -> Controller:
    """The step control of these options, whose steps end at the knots; f jumps where dX/ds does.

    Steps of a constant size end at every whole s, and not at outputs: no state depends on which others are asked for.
    """
    method, step = checks.method(options.get("method", "tsit5")), options.get("step")
    control = copy.copy(checks.controller(options.get("controller"), step, method))
    stops = path.knots[1:-1]
    if step is not None:
        control.every_output = False
        whole = torch.arange(1, int(path.knots[-1]), dtype=stops.dtype, device=stops.device)
        stops = torch.cat([stops, whole]).unique()
    if len(stops):
        control.step_ts = stops if control.step_ts is None else control.step_ts
        control.jump_ts = path.jumps if control.jump_ts is None and len(path.jumps) else control.jump_ts
    return control
