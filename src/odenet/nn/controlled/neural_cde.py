"""Neural controlled differential equations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack, cast, final

import torch
from torch import Tensor, nn

from ...api.option_types import SolveOptions
from ...api.solve import solve
from ...control import PID
from ...core.serialization import short_repr
from ...core.validate import describe, integer, one_of
from ...gradients.gradient import Stats
from ...series.control_path import ControlPath, derivative_pieces, piece_value
from ...series.interpolation import hermite, linear, natural, rectilinear
from ...series.series import Series
from .cde_fields import CDEField, LowRankCDEField, times_derivative

CONTROLS: dict[str, Callable[..., ControlPath]] = {
    "linear": linear,
    "rectilinear": rectilinear,
    "hermite": hermite,
    "natural": natural,
}
_DEFAULTS: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-6}


@final
class NeuralCDE(nn.Module):
    """z' = f(s, z) X', driven by a path X through a series. Kidger et al. 2020.

    channels: of the series. hidden: size of z. out: size of a linear readout, None: z itself. field: f(s, z), (B,
    hidden, channels of the path), or a module with prod(s, z, dX); None: `CDEField`. rank: of a `LowRankCDEField` in
    its place. control: "linear", "rectilinear", "hermite" or "natural", or a function of a series that gives a
    `ControlPath`. online: missing values are the last ones before them, so that nothing before a row depends on what
    comes later. counts: the numbers of values so far are channels too. static: number of static features, which the
    initial state depends on. solve_options: of `odenet.solve`, by default rtol=1e-4, atol=1e-6.

    The path has the channels time, those of the series, and counts.

    forward(series, ts=None): behind the last row of each sample, (B, out); at times ts, (Q,) or (B, Q), (B, Q, out).
    states(series): at every row, (B, T, out). stats: counts of the last solve.
    """

    def __init__(
        self,
        channels: int,
        hidden: int = 64,
        out: int | None = None,
        field: nn.Module | None = None,
        rank: int | None = None,
        control: str | Callable[[Series], ControlPath] = "hermite",
        online: bool = False,
        counts: bool = False,
        static: int = 0,
        **solve_options: Unpack[SolveOptions],
    ) -> None:
        super().__init__()
        self.channels, self.hidden = integer("channels", channels), integer("hidden", hidden)
        self.control, self.online, self.counts, self.static = control, online, counts, integer("static", static, 0)
        if isinstance(control, str):
            one_of("control", control, CONTROLS)
            if online and control == "natural":
                raise ValueError(
                    'online=True needs control="rectilinear", "hermite" or "linear": a natural spline looks ahead'
                )
        width = 1 + channels * (1 + counts)
        if field is None:
            field = CDEField(hidden, width) if rank is None else LowRankCDEField(hidden, width, rank)
        elif rank is not None:
            raise ValueError("rank is that of the library's own field; give field or rank")
        self.field, self.initial = field, nn.Linear(width + static, hidden)
        self.readout = nn.Identity() if out is None else nn.Linear(hidden, integer("out", out))
        self.solve_options = cast(SolveOptions, _DEFAULTS | solve_options)
        self.stats: Stats | None = None

    def forward(self, series: Series, ts: Tensor | None = None) -> Tensor:
        path, z0 = self.start(series)
        if ts is None:
            return self.readout(self._solve(path, z0, path.interval).y1)
        positions = path.position(ts)
        raise NotImplementedError(positions)

    def states(self, series: Series) -> Tensor:
        """At every row, (B, T, out)."""
        path, z0 = self.start(series)
        return self.readout(self._solve(path, z0, path.knots[path.rows]).ys.movedim(0, 1))

    def start(self, series: Series) -> tuple[ControlPath, Tensor]:
        """The path through the series, and the initial state."""
        if series.num_channels != self.channels:
            raise ValueError(f"series must have {self.channels} channels; it has {series.num_channels}")
        path = self._path(series)
        first = path.pieces[0, 0]
        features = series.static
        if (0 if features is None else features.shape[1]) != self.static:
            raise ValueError(f"series must have {self.static} static features; got {describe(features)}")
        return path, self.initial(first if features is None else torch.cat([first, features], -1))

    def _path(self, series: Series) -> ControlPath:
        if not isinstance(self.control, str):
            return self.control(series)
        options: dict[str, Any] = {"counts": self.counts}
        if self.control in ("linear", "hermite"):
            options["online"] = self.online
        return CONTROLS[self.control](series, **options)

    def _solve(self, path: ControlPath, z0: Tensor, ts: Tensor) -> Any:
        options = dict(self.solve_options)
        if not path.smooth and "controller" not in options and "step" not in options:
            options["controller"] = PID(jump_ts=path.knots[1:-1])
        sol = solve(
            self._slope, z0, ts, args=(path.knots, derivative_pieces(path.pieces)), **cast(SolveOptions, options)
        )
        self.stats = sol.stats
        return sol

    def _slope(self, s: Tensor, z: Tensor, knots: Tensor, slopes: Tensor) -> Tensor:
        return times_derivative(self.field, s, z, piece_value(slopes, knots, s))

    def extra_repr(self) -> str:
        options = "".join(f", {k}={short_repr(v)}" for k, v in self.solve_options.items())
        return f"control={self.control!r}, online={self.online}, counts={self.counts}{options}"
