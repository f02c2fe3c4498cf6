"""Arithmetic of leaves: the state as a flat tuple of tensors.

`solve` flattens the caller's pytree once; inside the library every state is `Leaves`. Times and step sizes are tensors
of shape () in a joint solve, and (B,) in a per-sample solve.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .torch_func import inside_transform, tracked, transforming, vmapping

Leaves = tuple[Tensor, ...]

_REAL = {torch.complex32: torch.float16, torch.complex64: torch.float32, torch.complex128: torch.float64}


def real_dtype(dtype: torch.dtype) -> torch.dtype:
    return _REAL.get(dtype, dtype)


def separate_view(x: Any) -> Any:
    """A view of a tensor that requires no gradient, so that f may set the view's flag; any other x unchanged."""
    if not isinstance(x, Tensor) or x.requires_grad:
        return x
    return x.view_as(x) if x.layout is torch.strided else x.detach()


_WORKING = {torch.float16: torch.float32, torch.bfloat16: torch.float32}


def in_working_precision(leaves: Sequence[Tensor]) -> Leaves:
    """The leaves in the engine's dtypes: half precision becomes float32, others stay."""
    return tuple([x.to(_WORKING[x.dtype]) if x.dtype in _WORKING else x for x in leaves])


def time_dtype(ts: Tensor, leaves: Sequence[Tensor]) -> torch.dtype:
    """The dtype of f's t: that of ts, but at least as precise as the state and float32."""
    dtype = torch.promote_types(ts.dtype, torch.float32)
    for leaf in leaves:
        dtype = torch.promote_types(dtype, real_dtype(leaf.dtype))
    return dtype


def differentiable(x: Tensor) -> bool:
    """True when x requires a gradient, carries a forward-mode tangent, or is tracked by a `torch.func` transform."""
    if x.requires_grad:
        return True
    level = forward_ad._current_level  # pyright: ignore[reportPrivateUsage]  # no public reader of the level
    if level >= 0 and forward_ad.unpack_dual(x).tangent is not None:
        return True
    return transforming() and tracked(x)


def forward_mode() -> bool:
    """True inside `torch.autograd.forward_ad.dual_level` or `torch.func.jvp`."""
    return forward_ad._current_level >= 0  # pyright: ignore[reportPrivateUsage]  # no public reader of the level


_NULL_CONTEXT = nullcontext()
_dispatch_modes = torch._C._len_torch_dispatch_stack  # pyright: ignore[reportPrivateUsage]  # no public reader


def without_grad() -> AbstractContextManager[Any]:
    """`torch.no_grad()`, but only in grad mode: entering it costs time even when it changes nothing."""
    return torch.no_grad() if torch.is_grad_enabled() else _NULL_CONTEXT


def being_recorded() -> bool:
    """True when operations are recorded as a graph, which must not use tensors made outside it, such as cached ones."""
    return _dispatch_modes() > 0


def flatten_samples(leaf: Tensor) -> Tensor:
    """(B, ...) -> (B, n): the elements of each sample on one axis; (B,) -> (B, 1)."""
    return leaf.unsqueeze(-1).flatten(1)


def as_graph_inputs(x: Leaves) -> Leaves:
    """Detached tensors that require a gradient: inputs of a new autograd graph."""
    return tuple([a.detach().requires_grad_() for a in x])


def constants(x: Leaves) -> Leaves:
    """The same values, detached."""
    return tuple(map(Tensor.detach, x))


_WIDER = {torch.float32: torch.float64, torch.complex64: torch.complex128}


def widened(x: Tensor) -> Tensor:
    """x in double precision; unchanged on mps, which has none."""
    return x if x.device.type == "mps" else x.to(_WIDER.get(x.dtype, x.dtype))


def version(x: Tensor) -> int:
    """The number of in-place changes of x; 0 for an inference tensor, which does not count them."""
    return 0 if x.is_inference() else x._version


def versions(x: Sequence[Tensor]) -> list[int]:
    return [0 if a.is_inference() else a._version for a in x]


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x.to(dtype), but x itself if the dtype is right: `to` costs time even when it changes nothing."""
    return x if x.dtype == dtype else x.to(dtype)


def expand_to(x: Tensor, leaf: Tensor) -> Tensor:
    """x, () or (B,), in the leaf's real dtype and with trailing axes that broadcast against the leaf."""
    dtype = _REAL.get(leaf.dtype, leaf.dtype)
    x = x if x.dtype is dtype else x.to(dtype)
    return x if x.ndim == 0 else x.view(x.shape + (1,) * (leaf.ndim - x.ndim))


def expand_over(x: Tensor, leaves: Leaves) -> Leaves:
    """`expand_to` for each leaf."""
    out: list[Tensor] = []
    for leaf in leaves:
        out.append(expand_to(x, leaf) if x.ndim else x.to(_REAL.get(leaf.dtype, leaf.dtype)))
    return tuple(out)


def unfused_sums() -> bool:
    """True when total + c * k must be two operations: Inductor of PyTorch 2.13 drops alpha if k is a product.

    Otherwise `add_(k, alpha=c)` updates total in place: nothing else holds total yet, and temporaries that are freed at
    once would fragment the heap.
    """
    return torch.compiler.is_compiling() or being_recorded()


_IN_PLACE, _ATTACHED, _UNFUSED, _VMAPPED = range(4)


def sum_kind() -> int:
    """How sums are computed; a caller with many sums asks once, as a step has one sum for each stage.

    _IN_PLACE: the result may overwrite the memory of the sum. _ATTACHED: derivatives pass through the sum. _UNFUSED:
    see `unfused_sums`. _VMAPPED: the first term may have no vmapped axis, and then cannot hold the other terms.
    """
    if inside_transform() and vmapping():  # the first alone is quick, and nearly always false
        return _VMAPPED
    if torch.compiler.is_compiling() or _dispatch_modes():
        return _UNFUSED
    if torch.is_grad_enabled():
        return _ATTACHED
    level = forward_ad._current_level  # pyright: ignore[reportPrivateUsage]  # no public reader of the level
    return _ATTACHED if level >= 0 else _IN_PLACE


def _sum(coefficients: Sequence[float], stages: Sequence[Leaves], i: int, kind: int) -> Tensor:
    """The weighted sum of the i-th leaves in new memory; at least one coefficient is not zero."""
    total: Tensor | None = None
    for c, stage in zip(coefficients, stages, strict=True):
        if c == 0.0:
            continue
        if total is None:
            total = stage[i] * c
        else:
            total = total + stage[i] * c if kind >= _UNFUSED else total.add_(stage[i], alpha=c)
    assert total is not None
    return total


def weighted_sum(coefficients: Sequence[float], stages: Sequence[Leaves]) -> Leaves:
    """sum_i coefficients[i] * stages[i] for each leaf, summed in this order.

    Each term is one elementwise operation, never a matrix product: a row of the sum then does not depend on the other
    rows, and a sample's result is the same bit for bit in any batch.
    """
    if coefficients.count(0.0) == len(coefficients):
        return tuple(torch.zeros_like(leaf) for leaf in stages[0])
    kind = sum_kind()
    out: list[Tensor] = []
    for i in range(len(stages[0])):
        out.append(_sum(coefficients, stages, i, kind))
    return tuple(out)


def add_scaled(y: Leaves, dt: Leaves, slope: Leaves) -> Leaves:
    """y + dt * slope; dt comes from `expand_over`."""
    triples = zip(y, slope, dt, strict=True)
    return tuple([x + k * h if x.is_complex() else torch.addcmul(x, k, h) for x, k, h in triples])


def add_increment(
    y: Leaves, dt: Leaves, coefficients: Sequence[float], stages: Sequence[Leaves], kind: int | None = None
) -> Leaves:
    """y + dt * sum_i coefficients[i] * stages[i], summed as in `weighted_sum`; dt comes from `expand_over`.

    kind: the result of `sum_kind`, None to call it here. Rejected: one matrix-vector product over stacked slopes, which
    saves two of eight operations on a small state and takes 1.5 times as long on a state of 512 x 256.
    """
    kind, terms = sum_kind() if kind is None else kind, len(coefficients) - coefficients.count(0.0)
    if kind == _VMAPPED:  # in-place operations need a vmapped axis on every operand
        return add_scaled(y, dt, weighted_sum(coefficients, stages))
    if not terms:
        return tuple(x.clone() for x in y)
    out: list[Tensor] = []
    for i, (x, h) in enumerate(zip(y, dt, strict=True)):
        if x.is_complex():
            out.append(x + _sum(coefficients, stages, i, kind) * h)
        elif terms == 1:
            c = sum(coefficients)
            out.append(torch.addcmul(x, stages[coefficients.index(c)][i], h, value=c))
        else:
            total = _sum(coefficients, stages, i, kind)
            out.append(torch.addcmul(x, total, h, out=total if kind == _IN_PLACE else None))
    return tuple(out)


def scale(dt: Leaves, leaves: Leaves) -> Leaves:
    """dt * leaves; dt comes from `expand_over`."""
    return tuple(map(torch.mul, leaves, dt))


def select(mask: bool | Tensor, yes: Leaves, no: Leaves) -> Leaves:
    """`yes` where the mask, (B,) or (), is true, else `no`, sample by sample. A Python bool copies nothing."""
    if isinstance(mask, bool):
        return yes if mask else no
    return tuple(
        torch.where(mask.view(mask.shape + (1,) * (a.ndim - mask.ndim)), a, b) for a, b in zip(yes, no, strict=True)
    )


def dot(a: Leaves, b: Leaves, batched: bool) -> Tensor:
    """Real inner product of two states: (), or (B,) if batched."""
    total: Tensor | None = None
    for x, y in zip(a, b, strict=True):
        product = (x.conj() * y).real if x.is_complex() else x * y
        term = flatten_samples(product).sum(1) if batched else product.sum()
        total = term if total is None else total + term
    assert total is not None  # solve refuses a state without tensors
    return total
