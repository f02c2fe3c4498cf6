"""Log-signatures of a path over windows: a shorter path with more channels, for the log-ODE method."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...core.validate import integer
from ...series.filling import linear_fill
from ...series.log_signature import log_signature
from .misc import validate_input_path


def logsig_windows(x: Tensor, depth: int, window_length: float, t: Tensor | None = None) -> Tensor:
    """Sums of the log-signatures over windows of time, (..., windows + 1, words): a path to interpolate as if it was x.

    Morrill et al. 2021, "Neural rough differential equations for long time series". The first row is x at its first
    time and zeros; channels are in the order of `lyndon_words`, those of x first.

    x: (..., length, channels), NaN where a value is missing: the path between values is a straight line.
    depth: of the log-signature, at least 1. For C channels depth 1 has C words, depth 2 has C (C + 1) / 2.
    window_length: in the unit of t. The last window ends with the path.
    t: times, (length,), increasing; None: 0, 1, ..., length - 1. Those of the result are 0, 1, ..., windows.

    Raises ValueError or TypeError for a wrong argument.
    """
    logsignatures, _ = _windows(x, depth, window_length, t)
    return _path(x, logsignatures)


def logsignature_windows(x: Tensor, depth: int, window_length: float, t: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`logsig_windows` as torchcde had it first: times the length of each window; also returns the windows' ends."""
    logsignatures, ends = _windows(x, depth, window_length, t)
    return _path(x, logsignatures * ends.diff()[:, None]), ends


def _path(x: Tensor, logsignatures: Tensor) -> Tensor:
    first = torch.nn.functional.pad(x[..., :1, :], (0, logsignatures.shape[-1] - x.shape[-1]))
    return torch.cat([first, logsignatures], -2).cumsum(-2)


def _windows(x: Tensor, depth: int, window_length: float, t: Tensor | None) -> tuple[Tensor, Tensor]:
    """The log-signature over each window, (..., W, words), and the times between them, (W + 1,)."""
    integer("depth", depth)
    length = float(window_length)
    if not 0.0 < length < math.inf:
        raise ValueError(f"window_length must be positive and finite; got {window_length!r}")
    t = validate_input_path(x, t)
    count = int(((t[-1] - t[0]).detach() / length).ceil())
    ends = torch.minimum(t[0] + length * torch.arange(count + 1, dtype=t.dtype, device=t.device), t[-1])
    times, order = torch.cat([t, ends]).sort(stable=True)
    rows = torch.cat([x, x.new_full((*x.shape[:-2], len(ends), x.shape[-1]), math.nan)], -2)[..., order, :]
    mask = ~torch.isnan(rows)
    increments = linear_fill(times, torch.where(mask, rows, 0.0), mask).to(x.dtype).diff(dim=-2)
    start = order.argsort()[len(t) :]  # the rows of `ends`
    line = start[:-1, None] + torch.arange(int(start.diff().max()), device=x.device)  # of each window, (W, S)
    inside = (line < start[1:, None])[..., None]
    lines = increments[..., line.clamp(max=increments.shape[-2] - 1), :]
    return log_signature(torch.where(inside, lines, 0.0), depth), ends
