"""Whether f mixes the samples of a batch that are solved each for itself: told by a gradient of one evaluation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .leaves import Leaves, rows


def may_misfit(t: Tensor, y: Leaves) -> bool:
    """Whether t (B,) also broadcasts along another axis of y: a derivative by t then tells which it was.

    Elsewhere t asks for none: f may turn it into a number, or an array of NumPy.
    """
    return t.ndim > 0 and any(len(t) in x.shape[1:] for x in y)


def refuse_mixing(f: Any, t: Tensor, y: Leaves, slope: Leaves) -> None:
    """Raise ValueError where one row of f's result depends on another row of y, or of t (B,).

    slope: attached to y, and to t where that asks for a gradient. A dependence that autograd does not see, or of which
    the derivative is zero here, is not found.
    """
    live = [k for k in slope if k.requires_grad]
    if len(t) < 2 or not live:
        return
    size = sum(rows(x.detach().abs()).sum(1).double() for x in y)
    row = int(torch.nan_to_num(torch.as_tensor(size), nan=0.0, posinf=0.0).argmax())
    total: Any = sum(_weighted(k[row]) for k in live)
    try:
        inputs = (t, *y) if t.requires_grad else y
        found = torch.autograd.grad(total, inputs, allow_unused=True, retain_graph=True)
    except RuntimeError:
        return  # f has no derivative: a backward pass says so, where there is one
    for name, bar in zip(("t",) * t.requires_grad + ("y",) * len(y), found, strict=True):
        other = None if bar is None else _other_row(bar, row)
        if other is not None:
            raise ValueError(_message(f, name, row, other, len(t), y))


def _weighted(x: Tensor) -> Tensor:
    """One number of which every entry has its own part."""
    flat = torch.view_as_real(x.resolve_conj()).reshape(-1) if x.is_complex() else x.reshape(-1)
    return (flat * torch.linspace(0.5, 1.5, len(flat), dtype=flat.dtype, device=flat.device)).sum().double()


def _other_row(bar: Tensor, row: int) -> int | None:
    top = rows(bar.detach().abs()).amax(1) if bar.ndim > 1 else bar.detach().abs()
    top[row] = 0.0
    found = ((top > 0) & torch.isfinite(top)).nonzero()
    return int(found[0]) if len(found) else None


def _message(f: Any, name: str, row: int, other: int, count: int, y: Leaves) -> str:
    text = f"per_sample=True: f mixes the samples: row {row} of f(t, y) depends on {name}[{other}]. "
    if name == "t":
        shape = ", ".join(["B", *["1"] * (y[0].ndim - 1)])
        return text + (
            f"t has shape (B,) = ({count},), a time for each sample: make it broadcast along y's first axis, as in "
            f"t.view({shape.replace('B', '-1')}) for y of shape {tuple(y[0].shape)}"
        )
    norms = [n for n, m in f.named_modules() if isinstance(m, _BatchNorm) and m.training] if _is_module(f) else []
    if norms:
        return text + (
            f"BatchNorm in training ({norms[0] or 'f'}) takes its mean over the batch: use f.eval(), another norm "
            "(GroupNorm, LayerNorm), or per_sample=False"
        )
    return text + "Use per_sample=False for an f that mixes samples: they then share their steps"


def _is_module(f: Any) -> bool:
    return isinstance(f, nn.Module)
