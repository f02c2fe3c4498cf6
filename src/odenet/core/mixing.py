"""Whether f mixes samples that are solved each for itself: told by a derivative, and by the values of evaluations."""

from __future__ import annotations

from collections.abc import Callable
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
    """Raise ValueError where one row of f's result depends on another row of y, or of t (B,): by one derivative.

    slope: attached to y, and to t where that asks for a gradient. It is asked of some rows whether they depend on the
    others, so of a dependence of few rows on few others not all are found; nor is one of which the derivative is zero.
    """
    live = [k for k in slope if k.requires_grad]
    if len(t) < 2 or not live:
        return
    inputs = (t, *y) if t.requires_grad else y
    names = ("t",) * t.requires_grad + ("y",) * len(y)

    def depends(asked: Tensor, others: Tensor) -> tuple[str, int] | None:
        total: Any = sum(_weighted(k[asked]) for k in live)
        found = torch.autograd.grad(total, inputs, allow_unused=True, retain_graph=True)
        for name, bar in zip(names, found, strict=True):
            other = None if bar is None else _first_row(bar.detach(), others)
            if other is not None:
                return name, other
        return None

    for marked in _marked(t):
        try:
            found = depends(~marked, marked)
        except RuntimeError:
            return  # f has no derivative: a backward pass says so, where there is one
        if found is not None:
            name, other = found
            single = torch.arange(len(t), device=t.device)
            row = next((i for i in range(len(t)) if not marked[i] and depends(single == i, single == other)), None)
            raise ValueError(_message(f, name, row, other, len(t), y))


def refuse_mixed_values(
    f: Any, again: Callable[[Tensor, Leaves], Leaves], first: tuple[Tensor, Leaves], t: Tensor, y: Leaves, out: Leaves,
    eps: float,
) -> None:  # fmt: skip
    """Raise ValueError where a row of f's result changes with other rows of t and y, those of the evaluation `first`.

    out: f(t, y). again: evaluates f. An f that changes by itself, from one evaluation to the next, is let be.
    """
    none = torch.zeros_like(t, dtype=torch.bool)

    def row_that_differs(of_t: Tensor, of_y: Tensor) -> int | None:
        state = tuple(torch.where(of_y.view(-1, *[1] * (x.ndim - 1)), a, x) for a, x in zip(first[1], y, strict=True))
        for a, b in zip(again(torch.where(of_t, first[0], t), state), out, strict=True):
            apart = (a - b).abs() > 64 * eps * b.abs().amax() if b.numel() else none
            row = _first_row(apart.to(t.dtype), ~(of_t | of_y))
            if row is not None:
                return row
        return None

    first_ones = _marked(t)[0]
    for marked in (first_ones, ~first_ones):  # what all depend on, such as the largest, may lie in either
        row = row_that_differs(marked, marked)
        if row is None:
            continue
        if row_that_differs(none, none) is not None:
            return
        for other in marked.nonzero()[:, 0].tolist():
            one = none.index_fill(0, torch.tensor([other], device=t.device), True)
            for name, of_t, of_y in (("t", one, none), ("y", none, one)):
                if (row := row_that_differs(of_t, of_y)) is not None:
                    raise ValueError(_message(f, name, row, other, len(t), y))


def _marked(t: Tensor) -> list[Tensor]:
    """Rows of which it is asked whether the others depend on them: every second one, and the last."""
    index = torch.arange(len(t), device=t.device)
    return [index == 0, index == 1] if len(t) == 2 else [(index % 2 == 0) | (index == len(t) - 1)]


def _weighted(x: Tensor) -> Tensor:
    """One number of which every entry has its own part."""
    flat = torch.view_as_real(x.resolve_conj()).reshape(-1) if x.is_complex() else x.reshape(-1)
    return (flat * torch.linspace(0.5, 1.5, len(flat), dtype=flat.dtype, device=flat.device)).sum().double()


def _first_row(x: Tensor, among: Tensor) -> int | None:
    """The first of the rows `among` in which x is not zero, nor infinite."""
    top = rows(x.abs()).amax(1) if x.ndim > 1 else x.abs()
    found = ((top > 0) & torch.isfinite(top) & among).nonzero()
    return int(found[0]) if len(found) else None


def _message(f: Any, name: str, row: int | None, other: int, count: int, y: Leaves) -> str:
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
