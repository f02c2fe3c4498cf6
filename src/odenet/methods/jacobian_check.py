"""Whether a failed solve by an implicit method is its Jacobian's fault."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.field_protocols import Field
from ..core.leaves import Leaves
from ..core.norms import all_finite
from .stage_equations import DENSE, jacobian
from .state_matrix import StateMatrix

_WRONG = 0.1  # relative difference of two derivatives along one direction that rounding and curvature do not explain


def jacobian_fault(f: Field, time: Tensor, state: Leaves, sample: int | None) -> tuple[str, str] | None:
    """Cause and cure, where df/dy as the method has it is not the derivative of f at the state of the failure.

    The derivative along a random direction, by central differences, beside J times that direction. Two lengths of
    difference have to agree, else f is not smooth here and nothing is said.
    """
    rows = StateMatrix(state, time.ndim == 1)
    given = getattr(f, "jacobian", None) is not None
    if not all_finite(state, False) or (rows.width > DENSE and not given):
        return None
    lane, y = sample or 0, rows.join(state)
    found = jacobian(f, rows, time, y)[lane]
    if not bool(torch.isfinite(found).all()):
        if not bool(all_finite(f(time, rows.part(y)), False)):
            return None
        return (
            f"{_whose(given)} holds NaN or infinity here, where f is finite",
            "mend jacobian=, or leave it out, and autograd finds it"
            if given
            else "look for a square root or norm of zero in f, whose derivative is infinite, or give jacobian=",
        )
    signs = torch.cos(torch.arange(rows.width, dtype=y.dtype, device=y.device) ** 2)
    size = y.abs().amax().clamp(min=1e-3) * torch.finfo(y.dtype).eps ** (1 / 3)

    def slope(length: Tensor) -> Tensor:
        ends = [rows.join(f(time, rows.part(y + sign * length * signs)))[lane] for sign in (1, -1)]
        return (ends[0] - ends[1]) / (2 * length)

    true, longer, claimed = slope(size), slope(4 * size), found @ signs
    scale = torch.maximum(true.norm(), claimed.norm())
    if not bool((true - longer).norm() < 0.1 * _WRONG * scale) or not bool((true - claimed).norm() > _WRONG * scale):
        return None
    off = f"{_whose(given)} is not the derivative of f here (differences of f give {float(true.norm()):.3g}"
    return (
        f"{off} along a direction in which it gives {float(claimed.norm()):.3g})",
        "compare jacobian= with torch.func.jacrev, or leave it out, and autograd finds it"
        if given
        else "f must be differentiable by autograd in y: take away its detach(), no_grad or NumPy, or give jacobian=",
    )


def _whose(given: bool) -> str:
    return "the Jacobian of jacobian=" if given else "the Jacobian that autograd finds of f"
