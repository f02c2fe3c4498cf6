"""Whether f mixes samples that are solved each for itself: told by a derivative, and by the values of evaluations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .leaves import Leaves, flatten_samples, real_dtype

_POWERS = 16  # of two, that rows are weighted with: even two rows far apart rarely have the same one
_ASKED = 8  # rows of a gradient that look mixed, the most so first, which are asked once more


def time_may_broadcast_wrongly(t: Tensor, y: Leaves) -> bool:
    """Whether t (B,) also broadcasts along another axis of y: a derivative by t then tells which it was.

    Elsewhere t asks for none: f may turn it into a number, or an array of NumPy.
    """
    return t.ndim > 0 and any(len(t) in x.shape[1:] for x in y)


def refuse_mixing(f: Any, t: Tensor, y: Leaves, slope: Leaves) -> None:
    """Raise ValueError where one row of f's result depends on another row of y, or of t (B,): by its derivative.

    slope: attached to y, and to t where that asks for a gradient. Where rows do not meet, a row's cotangent times a
    power of two gives its own gradient times that, exactly, and no other row's. A dependence of which the derivative is
    zero here is not found.
    """
    live = [k for k in slope if k.requires_grad]
    if len(t) < 2 or not live:
        return
    inputs = (t, *y) if t.requires_grad else y
    names = ("t",) * t.requires_grad + ("y",) * len(y)
    index = torch.arange(len(t), device=t.device)

    def gradients(weight: Tensor) -> list[Tensor]:
        """Of the sum over the rows, each times its weight."""
        bars = [_bar(k) * weight.to(k.dtype).view(-1, *[1] * (k.ndim - 1)) for k in live]
        found = torch.autograd.grad(live, inputs, bars, allow_unused=True, retain_graph=True)
        return [torch.zeros_like(x) if g is None else g.detach() for g, x in zip(found, inputs, strict=True)]

    weight = 2.0 ** ((index + index // _POWERS) % _POWERS - _POWERS // 2)
    try:
        plain, weighted = gradients(torch.ones_like(weight)), gradients(weight)
    except RuntimeError:
        return  # f has no derivative: a backward pass says so, where there is one
    for i, (name, a, b) in enumerate(zip(names, plain, weighted, strict=True)):
        apart = _of_rows(b - a * weight.to(a.dtype).view(-1, *[1] * (a.ndim - 1)))
        for other in apart.argsort(descending=True)[:_ASKED].tolist():
            # a sum whose order is not fixed, as on a GPU, is not exact; what is zero is
            single = index == other
            if apart[other] > 0 and _of_rows(gradients(~single)[i])[other] > 0:
                row = next(
                    (r for r in range(len(t)) if r != other and _of_rows(gradients(index == r)[i])[other] > 0), None
                )
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

    index = torch.arange(len(t), device=t.device)
    ones = (index % 2 == 0) | ((index == len(t) - 1) & (len(t) > 2))
    # what all depend on, such as the largest, may lie in either; the third looks between rows that those have together
    for marked in (ones, ~ones, index // 2 % 2 == 0)[: len(t)]:
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


def _bar(x: Tensor) -> Tensor:
    """A cotangent of x with another number for every entry of a row."""
    bar = torch.linspace(0.5, 1.5, x[0].numel(), dtype=real_dtype(x.dtype), device=x.device).view(x.shape[1:])
    return (torch.complex(bar, bar.flip(-1) if bar.ndim else bar) if x.is_complex() else bar).expand(x.shape)


def _of_rows(x: Tensor) -> Tensor:
    """The largest entry of each row; zero for what is not finite."""
    top = flatten_samples(x.abs()).amax(1) if x.ndim > 1 else x.abs()
    return torch.where(torch.isfinite(top), top, 0.0)


def _first_row(x: Tensor, among: Tensor) -> int | None:
    """The first of the rows `among` in which x is not zero, nor infinite."""
    found = ((_of_rows(x) > 0) & among).nonzero()
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
