"""Checks whether a wrong Jacobian explains the failure of a solve by an implicit method."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.field_protocols import Field
from ..core.leaves import Leaves
from ..core.norms import all_finite
from .jacobian import jacobian
from .linear_solvers import MAX_DENSE
from .matrix_layout import MatrixLayout

_MAX_DIFFERENCE = 0.1  # relative difference of two directional derivatives that round-off and curvature can explain


def jacobian_fault(f: Field, time: Tensor, state: Leaves, sample: int | None) -> tuple[str, str] | None:
    """Cause and cure for an error message, where the method's df/dy is not the derivative of f at (time, state).

    Compares the derivative in a fixed direction by central differences with J times that direction. Differences with
    two step lengths have to agree; otherwise f is not smooth here, and the result is None.
    """
    layout = MatrixLayout(state, time.ndim == 1)
    by_user = getattr(f, "jacobian", None) is not None
    if not all_finite(state, False) or (layout.width > MAX_DENSE and not by_user):
        return None
    row, y = sample or 0, layout.to_matrix(state)
    df_dy = jacobian(f, layout, time, y)[row]
    name = "the Jacobian of jacobian=" if by_user else "the Jacobian of f by autograd"
    if not bool(torch.isfinite(df_dy).all()):
        if not bool(all_finite(f(time, layout.to_leaves(y)), False)):
            return None
        return (
            f"{name} holds NaN or infinity here, where f is finite",
            "correct jacobian=, or leave it out: autograd then computes df/dy"
            if by_user
            else "look for a square root or norm of zero in f, whose derivative is infinite, or pass jacobian=",
        )
    direction = torch.cos(torch.arange(layout.width, dtype=y.dtype, device=y.device) ** 2)
    length = y.abs().amax().clamp(min=1e-3) * torch.finfo(y.dtype).eps ** (1 / 3)

    def central_difference(h: Tensor) -> Tensor:
        ends = [layout.to_matrix(f(time, layout.to_leaves(y + sign * h * direction)))[row] for sign in (1, -1)]
        return (ends[0] - ends[1]) / (2 * h)

    difference, coarse, product = central_difference(length), central_difference(4 * length), df_dy @ direction
    scale = torch.maximum(difference.norm(), product.norm())
    if not bool((difference - coarse).norm() < 0.1 * _MAX_DIFFERENCE * scale):
        return None
    if not bool((difference - product).norm() > _MAX_DIFFERENCE * scale):
        return None
    return (
        f"{name} is not the derivative of f here: along one direction, differences of f give "
        f"{float(difference.norm()):.3g}, and the Jacobian {float(product.norm()):.3g}",
        "compare jacobian= with torch.func.jacrev, or leave it out: autograd then computes df/dy"
        if by_user
        else "f must be differentiable by autograd in y: remove its detach(), no_grad or NumPy, or pass jacobian=",
    )
