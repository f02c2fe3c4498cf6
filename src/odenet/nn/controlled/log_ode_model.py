"""The log-ODE method: a controlled equation over windows of the path, driven by their log-signatures."""

from __future__ import annotations

from typing import Unpack, final

import torch
from torch import Tensor, nn
from torch.func import jvp

from ...api.option_types import SolveOptions
from ...core.validate import boolean, integer
from ...series.control_path import ControlPath
from ...series.interpolation import linear
from ...series.log_signature import log_signature, lyndon_words
from ...series.series import Series
from .cde_fields import CDEField
from .solved_cde import SolvedCDE


def log_signature_path(series: Series, window: int, depth: int, counts: bool = False) -> ControlPath:
    """A path of one straight piece for every `window` rows, which rises by the log-signature of the linear path there.

    Its channels are the coordinates of `odenet.series.log_signature`: the channels of the linear path and, from depth 2
    on, the areas between them. The last window of a sample may have fewer rows.
    """
    path = linear(series, counts)
    rises = path.pieces[:, 1].movedim(0, 1)  # (B, rows - 1, C)
    windows = -(-rises.shape[1] // window)
    rises = torch.nn.functional.pad(rises, (0, 0, 0, windows * window - rises.shape[1]))
    slopes = log_signature(rises.unflatten(1, (windows, window)), depth).movedim(1, 0)  # (W, B, L)
    start = torch.zeros_like(slopes[0])
    start[:, : path.num_channels] = path.pieces[0, 0]
    values = torch.cat([start[None], slopes[:-1]]).cumsum(0)
    knots = torch.arange(windows + 1, dtype=rises.dtype, device=rises.device)
    # in the last window of a sample, too, the path is at its end when the last row is
    row, last = path.rows, (series.length - 1).clamp(min=0)[:, None]
    begin = (row / window).floor() * window
    rows = (begin + (row - begin) * window / torch.minimum(begin + window, last).sub(begin).clamp(min=1)) / window
    rows = torch.where(row < last, rows, ((last + window - 1) // window).to(row))
    return ControlPath(knots, torch.stack([values, slopes], 1), False, path.times, rows, timed=rows)


@final
class BracketField(nn.Module):
    """The field of the log-ODE method of depth 2 for a given field of the path's channels.

    prod(s, z, dX) = sum_i f_i dX_i + sum_(i<j) [f_i, f_j] dX_ij with the Lie brackets [f_i, f_j] = (Df_j) f_i - (Df_i)
    f_j, where dX_ij are the areas. Walker et al. 2024, "Log neural controlled differential equations: the Lie brackets
    make a difference".

    field: f(s, z), (B, hidden, channels), differentiable in z.
    """

    def __init__(self, field: nn.Module, channels: int) -> None:
        super().__init__()
        self.field, self.channels = field, integer("channels", channels)

    def prod(self, s: Tensor, z: Tensor, dx: Tensor) -> Tensor:
        """(B, hidden), from z (B, hidden) and dX (B, channels + pairs)."""
        count = self.channels
        first, second = torch.triu_indices(count, count, 1, device=dx.device)  # in the order of the Lyndon words
        f = self.field(s, z)
        areas = dx.new_zeros(len(dx), count, count)
        areas[:, first, second] = dx[:, count:]
        # sum_(i<j) a_ij [f_i, f_j] = sum_j (Df_j) v_j, where v_j = sum_i f_i (a_ij - a_ji)
        directions = (f @ (areas - areas.mT)).movedim(-1, 0)  # (channels, B, hidden)
        copies, tangents = z.repeat(count, 1), directions.reshape(-1, z.shape[-1])
        slopes = jvp(lambda z: self.field(s, z), (copies,), (tangents.contiguous(),))[1]
        own = slopes.unflatten(0, (count, -1)).diagonal(dim1=0, dim2=-1)  # (B, hidden, channels): D f_j along v_j
        return (f @ dx[:, :count, None])[..., 0] + own.sum(-1)


@final
class LogODE(SolvedCDE):
    """A controlled equation that sees windows of the path by their log-signatures: fewer steps for long series.

    Morrill et al. 2021, "Neural rough differential equations for long time series": over a window dz/ds = field(s, z)
    times the log-signature. With brackets=True the field has the channels of the path, and its Lie brackets multiply
    the areas: the log-ODE method for the equation of `NeuralCDE`, whose solution it approaches with shorter windows.

    channels: of the series. hidden: size of z. out: size of a linear readout; None: z itself. window: rows of a window.
    depth: of the log-signature; at depth 1 a window is its increment, at depth 2 the areas between channels are added,
    and so on; its size grows like (1 + channels)^depth / depth. brackets: see above, for depth 2. counts, static: as
    `NeuralCDE`. field: f(s, z), (B, hidden, size of the log-signature), with brackets (B, hidden, channels of the
    path), or without them a module with prod(s, z, dX). rank: of a `LowRankCDEField`, without brackets. solve_options:
    as `NeuralCDE`.

    forward(series, ts=None), states(series): see `ControlledModel`; within a window the state depends on all of its
    rows. stats: counts of the last solve.

    Raises TypeError or ValueError for a wrong argument, and a `SolveError` if the solve fails.
    """

    def __init__(
        self,
        channels: int,
        hidden: int = 32,
        out: int | None = None,
        window: int = 8,
        depth: int = 2,
        brackets: bool = False,
        field: nn.Module | None = None,
        rank: int | None = None,
        counts: bool = False,
        static: int = 0,
        **solve_options: Unpack[SolveOptions],
    ) -> None:
        width = 1 + integer("channels", channels) * (1 + boolean("counts", counts))
        if boolean("brackets", brackets):
            if depth != 2 or rank is not None:
                raise ValueError(f"brackets=True needs depth=2 and no rank; got depth={depth}, rank={rank}")
            field = BracketField(CDEField(hidden, width) if field is None else field, width)
        size = len(lyndon_words(width, integer("depth", depth)))
        super().__init__(channels, hidden, out, static, "linear", False, counts, size, field, rank, solve_options)
        self.window, self.depth = integer("window", window), depth
        self.brackets = brackets

    def path(self, series: Series) -> ControlPath:
        return log_signature_path(series, self.window, self.depth, self.counts)

    def extra_repr(self) -> str:
        return f"window={self.window}, depth={self.depth}, brackets={self.brackets}"
