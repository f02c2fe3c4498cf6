"""Helpers of the other modules under torchcde's names, and controls in tuples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from ...core.validate import describe
from ...series import filling
from ...series.tridiagonal import solve_tridiagonal


def cheap_stack(tensors: Sequence[Tensor], dim: int) -> Tensor:
    """torch.stack."""
    return torch.stack(list(tensors), dim)


def tridiagonal_solve(b: Tensor, A_upper: Tensor, A_diagonal: Tensor, A_lower: Tensor) -> Tensor:
    """The x with A x = b for a tridiagonal A, (..., k). b, A_diagonal: (..., k). A_upper, A_lower: (..., k - 1).

    No pivots are sought. A second solve, for what the first one left over, takes its rounding errors off.
    """
    pad = nn.functional.pad
    lower, upper, diagonal, b = torch.broadcast_tensors(pad(A_lower, (1, 0)), pad(A_upper, (0, 1)), A_diagonal, b)
    x = solve_tridiagonal(lower, diagonal, upper, b)
    product = diagonal * x + upper * pad(x[..., 1:], (0, 1)) + lower * pad(x[..., :-1], (1, 0))
    return x + solve_tridiagonal(lower, diagonal, upper, b - product)


def validate_input_path(x: Any, t: Any) -> Tensor:
    """The times, by default 0, 1, ..., length - 1. Raises ValueError where x or t cannot be a path's."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise ValueError(f"x must be a tensor of floating point, with NaN where a value is missing; got {describe(x)}")
    if x.ndim < 2:
        raise ValueError(f"x must be (..., length, channels); got shape {tuple(x.shape)}")
    if t is None:
        t = torch.arange(x.shape[-2], dtype=x.dtype, device=x.device)
    if not isinstance(t, Tensor) or not t.is_floating_point():
        raise ValueError(f"t must be a tensor of floating point; got {describe(t)}: use t.to(x.dtype)")
    if t.ndim != 1:
        raise ValueError(
            f"t must be one-dimensional, the same for all samples; got shape {tuple(t.shape)}: let times that differ "
            "be a channel of x"
        )
    if len(t) != x.shape[-2]:
        raise ValueError(f"t must have a time for each row of x, {x.shape[-2]}; got {len(t)}")
    if len(t) < 2:
        raise ValueError(f"x must have at least two rows, (..., length, channels); got shape {tuple(x.shape)}")
    if not bool((t.detach().diff() > 0).all()):
        row = int((~(t.detach().diff() > 0)).nonzero()[0]) + 1
        raise ValueError(f"t must increase; t[{row}] = {float(t[row])} does not, after {float(t[row - 1])}")
    return t


def forward_fill(x: Any, fill_index: int = -2) -> Tensor:
    """x with the last value before it in place of each NaN, along dimension `fill_index`. NaN at the start stays."""
    if not isinstance(x, Tensor) or x.ndim < 2:
        raise AssertionError(f"x must be a tensor of at least two dimensions; got {describe(x)}")
    along = x.movedim(fill_index, -2)
    return filling.forward_fill(along, ~torch.isnan(along), float("nan")).movedim(-2, fill_index)


@final
class TupleControl(nn.Module):
    """Several controls over one interval as one, whose values are tuples: for a z0 that is a tuple."""

    def __init__(self, *controls: Any) -> None:
        super().__init__()
        if not controls:
            raise ValueError("TupleControl needs at least one control")
        first, *others = controls
        for i, control in enumerate(others, 1):
            if not torch.equal(control.interval.detach(), first.interval.detach()):
                raise ValueError(
                    f"the controls must have one interval; that of the first is {first.interval.tolist()}, that of "
                    f"number {i} {control.interval.tolist()}"
                )
        self.controls: Any = nn.ModuleList(controls)

    @property
    def interval(self) -> Tensor:
        """The interval of all controls, (2,)."""
        return self.controls[0].interval

    @property
    def grid_points(self) -> Tensor:
        """The knots of all controls, (K,); RuntimeError where they differ."""
        knots = self.controls[0].grid_points
        if any(not torch.equal(c.grid_points.detach(), knots.detach()) for c in self.controls):
            raise RuntimeError("the controls have different knots: take control.grid_points of each")
        return knots

    def evaluate(self, t: Any) -> tuple[Tensor, ...]:
        """X(t) of each control."""
        return tuple(control.evaluate(t) for control in self.controls)

    def derivative(self, t: Any) -> tuple[Tensor, ...]:
        """dX/dt of each control."""
        return tuple(control.derivative(t) for control in self.controls)
