"""Checks that f does not mix samples that are solved separately: by derivatives, and by values of evaluations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import batchnorm

from .leaves import Leaves, flatten_samples, real_dtype

_POWERS = 16  # powers of two among the weights of rows: even distant rows then rarely have the same weight
_MAX_CHECKED_ROWS = 8  # suspicious rows of a gradient, worst first, that are checked once more
_BATCH_NORM: type[nn.Module] = batchnorm._BatchNorm  # pyright: ignore[reportPrivateUsage]  # no public base class


def time_may_broadcast_wrongly(t: Tensor, y: Leaves) -> bool:
    """True when t (B,) also broadcasts along another axis of y: f is then differentiated with respect to t, too.

    Otherwise t requires no gradient, as f may convert t to a number or to a NumPy array.
    """
    return t.ndim > 0 and any(len(t) in x.shape[1:] for x in y)


def refuse_mixing(f: Any, t: Tensor, y: Leaves, slope: Leaves) -> None:
    """Raise ValueError if a row of f's result depends on another row of y, or of t (B,): see `find_mixing`."""
    found = find_mixing(t, y, slope)
    if found is not None:
        raise ValueError(_message(f, *found, len(t), y))


def find_mixing(t: Tensor, y: Leaves, slope: Leaves) -> tuple[str, int | None, int] | None:
    """A row of f's result that depends on another row of y, or of t (B,), according to derivatives; None: none does.

    slope: f(t, y), attached to y, and to t if t requires a gradient. If rows do not mix, scaling a row's cotangent by a
    power of two scales that row's gradient exactly, and changes no other row. A dependence whose derivative is zero at
    (t, y) is not found. Returns the name of what it depends on, the row, and that other row.
    """
    outputs = [k for k in slope if k.requires_grad]
    count = len(y[0])
    if count < 2 or not outputs:
        return None
    inputs = (t, *y) if t.requires_grad else y
    names = ("t",) * t.requires_grad + ("y",) * len(y)
    index = torch.arange(count, device=t.device)

    def gradients(weight: Tensor) -> list[Tensor]:
        """Gradients of the weighted sum over rows."""
        cotangents = [_cotangent(k) * weight.to(k.dtype).view(-1, *[1] * (k.ndim - 1)) for k in outputs]
        grads: Any = torch.autograd.grad(outputs, inputs, cotangents, allow_unused=True, retain_graph=True)
        return [torch.zeros_like(x) if g is None else g.detach() for g, x in zip(grads, inputs, strict=True)]

    weight = 2.0 ** ((index + index // _POWERS) % _POWERS - _POWERS // 2)
    try:
        plain, weighted = gradients(torch.ones_like(weight)), gradients(weight)
    except RuntimeError:
        return None  # f has no derivative: a backward pass raises the error, if there is one
    for i, (name, a, b) in enumerate(zip(names, plain, weighted, strict=True)):
        difference = _row_maxima(b - a * weight.to(a.dtype).view(-1, *[1] * (a.ndim - 1)))
        for source in difference.argsort(descending=True)[:_MAX_CHECKED_ROWS].tolist():
            # a sum in no fixed order, as on a GPU, has rounding errors; a gradient that is exactly zero has none
            others = index != source
            if difference[source] > 0 and _row_maxima(gradients(others)[i])[source] > 0:
                rows = (r for r in range(count) if r != source and _depends(gradients(index == r)[i], source))
                return name, next(rows, None), source
    return None


def refuse_mixed_values(
    f: Any,
    evaluate: Callable[[Tensor, Leaves], Leaves],
    first: tuple[Tensor, Leaves],
    t: Tensor,
    y: Leaves,
    out: Leaves,
    eps: float,
) -> None:
    """Raise ValueError if a row of f's result changes when other rows of t and y change.

    first: t and y of the first evaluation, which replace the changed rows. evaluate: f. out: f(t, y). eps: rounding of
    f's dtype. An f whose values change from call to call is not refused.
    """
    no_rows = torch.zeros_like(t, dtype=torch.bool)

    def changed_row(t_rows: Tensor, y_rows: Tensor) -> int | None:
        """The first row whose result changes with these rows of t and y."""
        state = tuple(torch.where(y_rows.view(-1, *[1] * (x.ndim - 1)), a, x) for a, x in zip(first[1], y, strict=True))
        for a, b in zip(evaluate(torch.where(t_rows, first[0], t), state), out, strict=True):
            differs = (a - b).abs() > 64 * eps * b.abs().amax() if b.numel() else no_rows
            row = _first_nonzero_row(differs.to(t.dtype), ~(t_rows | y_rows))
            if row is not None:
                return row
        return None

    index = torch.arange(len(t), device=t.device)
    even = (index % 2 == 0) | ((index == len(t) - 1) & (len(t) > 2))
    # a value that all rows depend on, such as a maximum, may lie in either half; pairs show mixing within a half
    for changed in (even, ~even, index // 2 % 2 == 0)[: len(t)]:
        row = changed_row(changed, changed)
        if row is None:
            continue
        if changed_row(no_rows, no_rows) is not None:
            return
        for source in changed.nonzero()[:, 0].tolist():
            single = no_rows.index_fill(0, torch.tensor([source], device=t.device), True)
            for name, t_rows, y_rows in (("t", single, no_rows), ("y", no_rows, single)):
                if (row := changed_row(t_rows, y_rows)) is not None:
                    raise ValueError(_message(f, name, row, source, len(t), y))


def _cotangent(x: Tensor) -> Tensor:
    """A cotangent of x that is the same for each row, with a different number for each entry of a row."""
    bar = torch.linspace(0.5, 1.5, x[0].numel(), dtype=real_dtype(x.dtype), device=x.device).view(x.shape[1:])
    return (torch.complex(bar, bar.flip(-1) if bar.ndim else bar) if x.is_complex() else bar).expand(x.shape)


def _row_maxima(x: Tensor) -> Tensor:
    """The largest magnitude in each row, (B,); zero for a row that is not finite."""
    largest = flatten_samples(x.abs()).amax(1) if x.ndim > 1 else x.abs()
    return torch.where(torch.isfinite(largest), largest, 0.0)


def _depends(gradient: Tensor, row: int) -> bool:
    return bool(_row_maxima(gradient)[row] > 0)


def _first_nonzero_row(x: Tensor, candidates: Tensor) -> int | None:
    """The first candidate row with a finite nonzero entry of x; candidates: a mask, (B,)."""
    rows = ((_row_maxima(x) > 0) & candidates).nonzero()
    return int(rows[0]) if len(rows) else None


def _message(f: Any, name: str, row: int | None, source: int, count: int, y: Leaves) -> str:
    text = f"per_sample=True: f mixes the samples: row {row} of f(t, y) depends on {name}[{source}]. "
    if name == "t":
        shape = ", ".join(["B", *["1"] * (y[0].ndim - 1)])
        return text + (
            f"t has shape (B,) = ({count},), a time for each sample: make it broadcast along y's first axis, as in "
            f"t.view({shape.replace('B', '-1')}) for y of shape {tuple(y[0].shape)}"
        )
    norm = batch_norm_in_training(f)
    if norm is not None:
        return text + (
            f"BatchNorm in training ({norm}) takes its mean over the batch: use f.eval(), another norm "
            "(GroupNorm, LayerNorm), or per_sample=False"
        )
    return text + "Use per_sample=False for an f that mixes samples: they then share their steps"


def batch_norm_in_training(f: Any) -> str | None:
    """The name of f's first batch norm that takes its moments from the batch; None where there is none."""
    modules = f.named_modules() if isinstance(f, nn.Module) else ()
    return next((name or "f" for name, m in modules if isinstance(m, _BATCH_NORM) and m.training), None)
