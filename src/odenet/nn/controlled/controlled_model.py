"""Models that a path through a series drives."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...core.validate import boolean, integer, one_of
from ...series.control_path import ControlPath
from ...series.interpolation import extension, hermite, linear, natural, rectilinear
from ...series.series import Series
from ..series_model import SeriesModel, row_up_to, with_static

ControlName = Literal["linear", "rectilinear", "hermite", "natural"]
CONTROLS: dict[str, Callable[..., ControlPath]] = {
    "linear": linear,
    "rectilinear": rectilinear,
    "hermite": hermite,
    "natural": natural,
}


_MOST_GAPS = 1000  # behind the last row: further ahead s counts longer times


class ControlledModel(SeriesModel):
    """Base of models with a state z that a path X through the series drives, from a linear map of X at its start.

    The channels of the path are the time, those of the series and, with counts=True, the numbers of values so far.

    control: "linear", "rectilinear", "hermite" or "natural" (see `odenet.series`), or a function of a scaled series
    that gives a `ControlPath`. online: missing values are the last ones before them, so that no state depends on rows
    after its time. counts: the numbers of values so far are channels too.

    forward(series, ts=None), states(series): as `SeriesModel`. Behind the last row of a sample time alone goes on, and
    s by 1 in the mean time that it took so far. With online=True that is so behind every row: the state at ts is that
    after the last row up to ts, driven on to ts by time. Before the first row it is the initial state.
    """

    any_shape = True  # `drive` may be called for another number of samples each time; it is compiled for one otherwise

    def __init__(
        self,
        channels: int,
        hidden: int,
        out: int | None,
        static: int,
        control: ControlName | Callable[[Series], ControlPath],
        online: bool,
        counts: bool,
        path_channels: int | None = None,
    ) -> None:
        super().__init__(channels, hidden, out, static)
        self.control = control if callable(control) else one_of("control", control, CONTROLS)
        self.online, self.counts = boolean("online", online), boolean("counts", counts)
        if online and control == "natural":
            raise ValueError(
                'online=True needs control="rectilinear", "hermite" or "linear": a natural spline looks ahead'
            )
        own = 1 + self.channels * (1 + self.counts)
        self.path_channels = own if path_channels is None else integer("path_channels", path_channels)
        self._start_channels = min(own, self.path_channels)
        self.initial = nn.Linear(self._start_channels + static, hidden)

    def path(self, series: Series) -> ControlPath:
        """The path through a scaled series."""
        if callable(self.control):
            return self.control(series)
        options: dict[str, Any] = {"counts": self.counts}
        if self.control in ("linear", "hermite"):
            options["online"] = self.online
        return CONTROLS[self.control](series, **options)

    @abstractmethod
    def drive(self, path: ControlPath, z0: Tensor, at: Tensor | None, begin: Tensor | None = None) -> Tensor:
        """The state along a path from z0 (B, hidden): at its end, (B, hidden), or at `at`: (B, Q, hidden).

        at: increasing s, (Q,) from the first knot on, or (B, Q). begin: added to s where a field sees it, (B,), with
        `at` (B, Q).
        """

    def last_state(self, series: Series) -> Tensor:
        path = self._checked_path(series)
        return self._driven(path, self._start(path, series), None)

    def row_states(self, series: Series) -> Tensor:
        path = self._checked_path(series)
        return self._at_rows(path, self._start(path, series), series)

    def states_at(self, series: Series, ts: Tensor) -> Tensor:
        order = ts.argsort(1)
        ts, back = ts.gather(1, order), order.argsort(1)
        path = self._checked_path(series)
        z0, last = self._start(path, series), series.t[:, -1:]
        last_row = (series.length - 1).clamp(min=0)[:, None]
        if self.online:
            rows = self._at_rows(path, z0, series)
            states = self._behind_each_row(series, path, rows, ts.minimum(last))
            end = rows.gather(1, _wide(last_row, rows))
        else:
            states = self._driven(path, z0, path.position(ts.minimum(last)))
            end = states[:, -1:]  # at the last row, where a time behind it is asked for
        later = ts > last
        if bool(later.any()):
            s, gap = (x.gather(1, last_row)[:, 0] for x in _pace(series, path))
            behind = self._behind(end[:, 0], last[:, 0], s, gap, ts.maximum(last))
            states = torch.where(later[..., None], behind, states)
        states = torch.where((ts < series.t[:, :1])[..., None], z0[:, None], states)
        return states.gather(1, _wide(back, states))

    def _behind_each_row(self, series: Series, path: ControlPath, rows: Tensor, ts: Tensor) -> Tensor:
        """The states at ts (B, Q), each driven by time alone from that at the row before it, of rows (B, T, hidden)."""
        row = row_up_to(series, ts).clamp(min=0)
        t0, s, gap = (x.gather(1, row) for x in (series.t, *_pace(series, path)))
        start, ts = rows.gather(1, _wide(row, rows)), ts.maximum(t0)
        chosen = ts > t0 if self.any_shape else torch.ones_like(ts, dtype=torch.bool)
        if not bool(chosen.any()):
            return start
        found = self._behind(start[chosen], t0[chosen], s[chosen], gap[chosen], ts[chosen][:, None])
        return start.masked_scatter(chosen[..., None], found)

    def _behind(self, z: Tensor, t0: Tensor, s: Tensor, gap: Tensor, ts: Tensor) -> Tensor:
        """The states at ts (N, Q), driven by time alone from z (N, hidden) at t0 and s, (N,); s counts gaps, (N,)."""
        gap = gap.maximum((ts[:, -1] - t0) / _MOST_GAPS)
        at = (ts - t0[:, None]) / gap[:, None]
        count = max(1, int(at.detach().amax().ceil())) if at.numel() else 1
        return self._driven(extension(self.path_channels, t0, gap, count), z, at, s)

    def _at_rows(self, path: ControlPath, z0: Tensor, series: Series) -> Tensor:
        """The states at the rows, (B, T, hidden)."""
        if series.t.shape[1] == 1:
            return z0[:, None]
        return self._driven(path, z0, path.rows)[:, : series.t.shape[1]]

    def _driven(self, path: ControlPath, z0: Tensor, at: Tensor | None, begin: Tensor | None = None) -> Tensor:
        """`drive`, which needs a state and times."""
        if at is None:
            return self.drive(path, z0, None) if z0.numel() else z0
        if not (z0.numel() and at.numel()):
            return z0.new_zeros(len(z0), at.shape[-1], self.hidden)
        return self.drive(path, z0, at, begin)

    def _checked_path(self, series: Series) -> ControlPath:
        path = self.path(series)
        if path.num_channels != self.path_channels:
            raise ValueError(
                f"control gives a path of {path.num_channels} channels, and the model takes {self.path_channels}: the "
                f"time, {self.channels} of the series{', and counts' if self.counts else ''}"
            )
        if not torch.equal(path.pieces[0, 0, :, 0], path.times[:, 0]):
            raise ValueError("control must give a path whose first channel is the time, as the states go on by it")
        return path

    def _start(self, path: ControlPath, series: Series) -> Tensor:
        return self.initial(with_static(path.pieces[0, 0, :, : self._start_channels], series.static))

    def extra_repr(self) -> str:
        return f"control={self.control!r}, online={self.online}, counts={self.counts}"


def _pace(series: Series, path: ControlPath) -> tuple[Tensor, Tensor]:
    """s at each row, and the mean time for which s rose by 1 up to there while time ran, else 1: (B, T)."""
    s, time = path.rows[..., : series.t.shape[1]].expand_as(series.t).contiguous(), series.t - series.t[:, :1]
    piece = (torch.searchsorted(path.knots, s, right=True) - 1).clamp(0, len(path.pieces) - 1)
    runs = (path.pieces[:, 1, :, 0].detach() > 0).T.to(s)  # of a rectilinear path half of the pieces
    before = torch.nn.functional.pad((runs * path.knots.diff()).cumsum(1), (1, 0))
    risen = before.gather(1, piece) + runs.gather(1, piece) * (s - path.knots[piece])
    known = (time > 0) & (risen > 0)
    return s, torch.where(known, time / torch.where(known, risen, 1.0), 1.0)


def _wide(index: Tensor, like: Tensor) -> Tensor:
    """An index (B, Q) for `gather` along dimension 1 of (B, T, C)."""
    return index[..., None].expand(*index.shape, like.shape[-1])
