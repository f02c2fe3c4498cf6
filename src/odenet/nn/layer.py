"""NeuralODE: a solve as a layer; Augmented: extra zeros in its state."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Unpack, final

import torch
from torch import Tensor, nn

from ..api import traced_solve
from ..api.option_types import SolveOptions
from ..api.solve import Solver, solve
from ..core.field_protocols import UserField
from ..core.leaves import real_dtype
from ..core.pytrees import flatten, tree_map
from ..core.serialization import short_repr
from ..core.status import Status
from ..core.torch_func import without_vmap
from ..core.validate import describe, function, integer, number
from ..core.validate import times as real_times
from ..gradients.gradient import Stats
from ..tracing.dynamo_entry import exporting


@final
class NeuralODE(nn.Module):
    """A layer that maps y0 to the solution of dy/dt = field(t, y, *args) at the last time.

    field: callable f(t, y, *args), usually a module; t has y's real dtype (at least float32). ts: the times from start
    to end. solve_options: of `odenet.solve`.

    forward(y0, ts=None, args=()): the state at the last time, or with `ts` the trajectory at ts: (T, ...), with
    per_sample (B, T, ...). stats: counts of the last solve (nfe, accepted, rejected, backward_nfe). status: of the last
    solve, a `Status`; with per_sample codes, (B,). The layer returns states alone: for dense output and the hits of
    events call `odenet.solve`.

    The constructor raises TypeError or ValueError for a wrong option; forward raises for options that do not match y0.
    """

    def __init__(
        self, field: UserField, ts: Sequence[float] = (0.0, 1.0), **solve_options: Unpack[SolveOptions]
    ) -> None:
        super().__init__()
        self.field = function("field", field, "field(t, y, *args)")
        self.ts = fixed_times(ts)
        self.solve_options = solve_options
        self._solver = Solver(field, **solve_options)
        self.stats: Stats | None = None
        self.status: Status | Tensor | None = None

    def forward(self, y0: Any, ts: Any = None, args: tuple[Any, ...] = ()) -> Any:
        times = self.ts if ts is None else ts
        if not isinstance(times, Tensor):
            leaf = next(iter(flatten(y0)[0]), None)
            like: tuple[Any, ...] = (torch.float64, torch.device("cpu"))
            if isinstance(leaf, Tensor) and leaf.dtype.itemsize > 1:  # otherwise the solve raises an error about y0
                like = torch.promote_types(real_dtype(leaf.dtype), torch.float32), leaf.device
            times = layer_times(self.ts, *like) if ts is None else real_times("ts", ts).to(like[1], like[0])
        if exporting():  # the graph sets no attributes, and constant steps between known times need no loop
            sol = traced_solve.solve(
                self.field, y0, times, args=args, host_ts=self.ts if ts is None else None, **self.solve_options
            )
            if sol is not None:
                return sol.y1 if ts is None else sol.ys
        if torch.compiler.is_compiling():
            sol = solve(self.field, y0, times, args=args, **self.solve_options)
        else:
            if not self._solver.matches(self.field, self.solve_options):
                self._solver = Solver(self.field, **self.solve_options)
            sol = self._solver(y0, times, args)
        self.stats, self.status = sol.stats.outliving_vmap(), without_vmap(sol.status)
        return sol.y1 if ts is None else sol.ys

    def extra_repr(self) -> str:
        return ", ".join([f"ts={self.ts}", *(f"{k}={short_repr(v)}" for k, v in self.solve_options.items())])


def layer_times(times: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The times of a layer as a tensor, the same one in each call, so that the solver can reuse its layout."""
    if torch.compiler.is_compiling():
        return torch.tensor(times, dtype=dtype, device=device)
    return _kept_tensor(times, dtype, device)


@lru_cache(maxsize=64)
def _kept_tensor(times: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # the cached tensor is also used outside inference mode
        return torch.tensor(times, dtype=dtype, device=device)


def fixed_times(ts: Any) -> tuple[float, ...]:
    """The times of a layer, from start to end, as numbers."""
    if isinstance(ts, (str, bytes, dict)) or not hasattr(ts, "__iter__") or (isinstance(ts, Tensor) and ts.ndim == 0):
        raise TypeError(f"ts must be a sequence of times, from start to end; got {describe(ts)}")
    times = tuple(number("ts", t) for t in ts)
    if len(times) < 2:
        raise ValueError(f"ts must hold at least two times, from start to end; got {times}")
    return times


@final
class Augmented(nn.Module):
    """Runs a layer on y0 with `extra` zeros along an axis, and removes them from the result (Dupont et al. 2019).

    layer: a module such as NeuralODE whose field works on the wider state. dim: the axis of y0 with the zeros (1:
    features of (B, D), channels of (B, C, H, W)).
    """

    def __init__(self, layer: nn.Module, extra: int, dim: int = 1) -> None:
        super().__init__()
        function("layer", layer, "layer(y0, ts, args)")
        extra, dim = integer("extra", extra), integer("dim", dim, -64, 63)
        self.layer, self.extra, self.dim = layer, extra, dim

    def forward(self, y0: Tensor, ts: Any = None, args: tuple[Any, ...] = ()) -> Tensor:
        if not -y0.ndim <= self.dim < y0.ndim:
            raise ValueError(f"dim={self.dim} is no axis of y0, whose shape is {tuple(y0.shape)}")
        shape = list(y0.shape)
        shape[self.dim] = self.extra
        wide = self.layer(torch.cat([y0, y0.new_zeros(shape)], self.dim), ts, args)
        axis = self.dim if ts is None else self.dim + (self.dim >= 0)
        return tree_map(lambda y: y.narrow(axis, 0, y0.shape[self.dim]), wide)

    def extra_repr(self) -> str:
        return f"extra={self.extra}, dim={self.dim}"
