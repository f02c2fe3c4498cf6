"""Straight lines between knots, and the rectilinear path, which are lines of either the time or the values."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from ...errors import warn
from ...series.filling import linear_fill
from .interpolation_base import KnotInterpolation, checked_coeffs
from .misc import forward_fill, validate_input_path


def linear_interpolation_coeffs(x: Tensor, t: Tensor | None = None, rectilinear: int | None = None) -> Tensor:
    """Values at the knots of `LinearInterpolation`, of x's shape, with missing ones filled in.

    x: (..., length, channels), NaN where a value is missing. Between two values it becomes that of the line between
        them, before the first and behind the last one that value, and 0 in a channel without any.
    t: times, (length,), increasing; None: 0, 1, ..., length - 1.
    rectilinear: the number of the channel that is the time. The path then runs first to the next time, and then to the
        next values, so it looks never ahead: (..., 2 length - 1, channels). Times for it are of that length.

    Raises ValueError for a wrong x or t, AssertionError for a wrong number of a channel or a missing time in it.
    """
    if rectilinear is not None:
        x = _rectilinear(x, rectilinear)
    t = validate_input_path(x, t)
    mask = ~torch.isnan(x)
    if bool(mask.all()):
        return x
    return linear_fill(t, torch.where(mask, x, 0.0), mask).to(x.dtype)  # a NaN would reach the gradient of t


def _rectilinear(x: Tensor, time: int) -> Tensor:
    """Rows and, between each two, one with the time of the next and the values of the one before."""
    if x.ndim < 2:
        raise ValueError(f"x must be (..., length, channels); got shape {tuple(x.shape)}")
    if type(time) is not int or not 0 <= time < x.shape[-1]:
        raise AssertionError(
            f"rectilinear must be the number of the time channel, 0 to {x.shape[-1] - 1}; got {time!r}"
        )
    if bool(torch.isnan(x[..., time]).any()):
        raise AssertionError(f"x misses times in channel {time}: fill them in, behind the end with the last time")
    if bool(torch.isnan(x[..., :1, :]).any()):
        warn(
            "x has no value in some channels at its first time. There the path takes the first value that comes later, "
            "and so looks ahead: give values for the first time, such as the means of the channels"
        )
    x = forward_fill(x)
    is_time = torch.arange(x.shape[-1], device=x.device) == time
    corners = torch.where(is_time, x[..., 1:, :], x[..., :-1, :])
    return torch.cat([torch.stack([x[..., :-1, :], corners], -2).flatten(-3, -2), x[..., -1:, :]], -2)


@final
class LinearInterpolation(KnotInterpolation):
    """The path of straight lines between knots. Its derivative jumps there: see `jump_t` of the solver.

    coeffs: from `linear_interpolation_coeffs`, (..., length, channels). t: the times given to it.

    >>> import torch
    >>> x = torch.tensor([[0.0], [2.0], [1.0]])
    >>> X = LinearInterpolation(linear_interpolation_coeffs(x))
    >>> X.evaluate(0.5).item(), X.derivative(0.5).item(), X.derivative(torch.tensor([0.5, 1.5])).tolist()
    (1.0, 2.0, [[2.0], [-1.0]])
    """

    def __init__(self, coeffs: Tensor, t: Tensor | None = None, **kwargs: Any) -> None:
        coeffs = checked_coeffs(coeffs, 2, "linear_interpolation_coeffs")
        lengths = 1.0 if t is None else t.diff()[:, None]
        if isinstance(lengths, Tensor) and len(lengths) != coeffs.shape[-2] - 1:
            raise ValueError(
                f"t must have a time for each of {coeffs.shape[-2]} rows of coeffs; got {len(lengths) + 1}"
            )
        super().__init__(t, coeffs.diff(dim=-2) / lengths, **kwargs)
        self._coeffs: Tensor
        self.register_buffer("_coeffs", coeffs)

    def _values(self, u: Tensor, index: Tensor) -> Tensor:
        return self._coeffs.index_select(-2, index) + u[:, None] * self._pieces.index_select(-2, index)

    def _slopes(self, u: Tensor, index: Tensor) -> Tensor:
        return self._pieces.index_select(-2, index)
