"""The only door to pytrees, and the arithmetic of tuples of tensors.

Inside the library a state is `Leaves`, a flat tuple of tensors; `solve` flattens the caller's pytree once.
A `Lane` is what belongs to a sequence of steps: the time, the step size. Shape () when all samples share their steps,
(B,) when each sample has its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as _pytree
from torch import Tensor
from torch.autograd import forward_ad

from .transforms import tracked, transforming, vmapping

Leaves = tuple[Tensor, ...]
Spec = _pytree.TreeSpec

_BARE = _pytree.tree_flatten(0)[1]
tree_map = _pytree.tree_map


def unflatten(leaves: Sequence[Any], spec: Spec) -> Any:
    """The pytree of this structure."""
    return leaves[0] if spec is _BARE else _pytree.tree_unflatten(leaves, spec)


def flatten(tree: Any) -> tuple[list[Any], Spec]:
    """The leaves of a pytree, and its structure."""
    return ([tree], _BARE) if isinstance(tree, Tensor) else _pytree.tree_flatten(tree)


def flatten_like(tree: Any, like: Spec) -> tuple[list[Any], Spec]:
    """The same, where dicts may have their keys in another order than in `like`."""
    leaves, spec = flatten(tree)
    if spec == like or spec.num_leaves != like.num_leaves:
        return leaves, spec
    try:
        ordered = like.flatten_up_to(tree)
    except ValueError:
        return leaves, spec
    same = all(_pytree.tree_is_leaf(x) for x in ordered)
    return (ordered, like) if same else (leaves, spec)


def flatten_with_names(tree: Any) -> list[tuple[str, Any]]:
    """Each leaf with its path in the pytree, such as "['x'][0]" ("" for a bare leaf)."""
    if isinstance(tree, Tensor):
        return [("", tree)]
    pairs, _ = _pytree.tree_flatten_with_path(tree)
    return [(_pytree.keystr(path), leaf) for path, leaf in pairs]


def outline(spec: Spec) -> str:
    """The structure of a pytree, as a message shows it: {'x': tensor, 'v': (tensor, tensor)}."""
    if spec.is_leaf():
        return "tensor"
    inner = [outline(child) for child in spec.children()]
    if spec.type is dict:
        return "{" + ", ".join(f"{key!r}: {x}" for key, x in zip(spec.context, inner, strict=True)) + "}"
    if spec.type is list:
        return f"[{', '.join(inner)}]"
    if spec.type is tuple:
        return f"({', '.join(inner)}{',' * (len(inner) == 1)})"
    return f"{getattr(spec.type, '__name__', spec.type)}({', '.join(inner)})"


_REAL = {torch.complex32: torch.float16, torch.complex64: torch.float32, torch.complex128: torch.float64}


def real_dtype(dtype: torch.dtype) -> torch.dtype:
    return _REAL.get(dtype, dtype)


def own_view(x: Any) -> Any:
    """A tensor that asks for no gradient as a view whose flag is its own; anything else as it is."""
    if not isinstance(x, Tensor) or x.requires_grad:
        return x
    return x.view_as(x) if x.layout is torch.strided else x.detach()


_WORKING = {torch.float16: torch.float32, torch.bfloat16: torch.float32}


def in_working_precision(leaves: Sequence[Tensor]) -> Leaves:
    """What the engine computes with: never less than float32."""
    return tuple([x.to(_WORKING[x.dtype]) if x.dtype in _WORKING else x for x in leaves])


def time_dtype(ts: Tensor, leaves: Sequence[Tensor]) -> torch.dtype:
    """What f's t has: the dtype of ts, never less precise than the state or float32."""
    dtype = torch.promote_types(ts.dtype, torch.float32)
    for leaf in leaves:
        dtype = torch.promote_types(dtype, real_dtype(leaf.dtype))
    return dtype


def differentiable(x: Tensor) -> bool:
    """Whether derivatives with respect to x are asked for: in reverse mode, or in forward mode by a tangent."""
    if x.requires_grad or (forward_ad._current_level >= 0 and forward_ad.unpack_dual(x).tangent is not None):
        return True
    return transforming() and tracked(x)


def forward_mode() -> bool:
    """Inside `torch.autograd.forward_ad.dual_level` or `torch.func.jvp`."""
    return forward_ad._current_level >= 0


_NOTHING = nullcontext()


def without_grad() -> AbstractContextManager[Any]:
    """`torch.no_grad()`, which takes its time also where it has nothing to do."""
    return torch.no_grad() if torch.is_grad_enabled() else _NOTHING


def recorded() -> bool:
    """Operations are being recorded as a graph, which should see no tensor that was made beside it."""
    return torch._C._len_torch_dispatch_stack() > 0


def rows(leaf: Tensor) -> Tensor:
    """(B, n): all elements of each sample on one axis, also for a leaf of one number a sample."""
    return leaf.unsqueeze(-1).flatten(1)


def new_leaves(x: Leaves) -> Leaves:
    """The same values as leaves of a graph to come."""
    return tuple([a.detach().requires_grad_() for a in x])


def constants(x: Leaves) -> Leaves:
    """The same values, attached to no graph."""
    return tuple(map(Tensor.detach, x))


_WIDER = {torch.float32: torch.float64, torch.complex64: torch.complex128}


def widened(x: Tensor) -> Tensor:
    """x in double precision, where the device has it."""
    return x if x.device.type == "mps" else x.to(_WIDER.get(x.dtype, x.dtype))  # mps has no float64


def version(x: Tensor) -> int:
    """How often x was changed in place; not counted in inference mode."""
    return 0 if x.is_inference() else x._version


def versions(x: Sequence[Tensor]) -> list[int]:
    return [0 if a.is_inference() else a._version for a in x]


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x.to(dtype), which takes its time also where it has nothing to do."""
    return x if x.dtype == dtype else x.to(dtype)


def packed(leaves: Leaves, dtypes: tuple[torch.dtype, ...], spec: Spec) -> Any:
    """The pytree of these leaves, in these dtypes."""
    if spec is _BARE:
        (x,), (dtype,) = leaves, dtypes
        return x if x.dtype is dtype else x.to(dtype)
    return unflatten([cast(x, d) for x, d in zip(leaves, dtypes, strict=True)], spec)


@dataclass(frozen=True)
class Structure:
    """Leaves -> the state in the caller's structure and dtypes."""

    spec: Spec
    dtypes: tuple[torch.dtype, ...]

    def __call__(self, leaves: Leaves) -> Any:
        return packed(leaves, self.dtypes, self.spec)

    def __reduce__(self) -> tuple[Any, ...]:
        """As a state of numbers: PyTorch warns where a TreeSpec is pickled."""
        return Structure.like, (unflatten(range(len(self.dtypes)), self.spec), self.dtypes)

    @staticmethod
    def like(state: Any, dtypes: tuple[torch.dtype, ...]) -> Structure:
        return Structure(flatten(state)[1], dtypes)


def spread(lane: Tensor, leaf: Tensor) -> Tensor:
    """The lane in the leaf's real dtype, shaped to broadcast against the leaf."""
    dtype = _REAL.get(leaf.dtype, leaf.dtype)
    lane = lane if lane.dtype is dtype else lane.to(dtype)
    return lane if lane.ndim == 0 else lane.view(lane.shape + (1,) * (leaf.ndim - lane.ndim))


def spread_over(lane: Tensor, leaves: Leaves) -> Leaves:
    out: list[Tensor] = []
    for leaf in leaves:
        out.append(spread(lane, leaf) if lane.ndim else lane.to(_REAL.get(leaf.dtype, leaf.dtype)))
    return tuple(out)


def apart() -> bool:
    """Whether total + c * k is to be two operations: Inductor of PyTorch 2.13 leaves alpha out where k is a product.

    Elsewhere it is one, in place of total: that belongs to no one yet, and memory freed at once fragments the heap.
    """
    return torch.compiler.is_compiling() or recorded()


_OWNED, _ATTACHED, _APART, _VMAPPED = range(4)


def arithmetic() -> int:
    """How sums are computed here: one question for each sum, as there is one for every stage of every step.

    _OWNED: the memory of a sum may take the result. _ATTACHED: derivatives pass through it. _APART: see `apart`.
    _VMAPPED: the first terms may be the same for all lanes of a vmap, and no place for the others.
    """
    if vmapping():
        return _VMAPPED
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return _APART
    return _ATTACHED if torch.is_grad_enabled() or forward_ad._current_level >= 0 else _OWNED


def _sum(coefficients: Sequence[float], stages: Sequence[Leaves], i: int, kind: int) -> Tensor:
    """The weighted sum of the i-th leaves, in memory of its own; of at least one coefficient that is not zero."""
    total: Tensor | None = None
    for c, stage in zip(coefficients, stages, strict=True):
        if c == 0.0:
            continue
        if total is None:
            total = stage[i] * c
        else:
            total = total + stage[i] * c if kind >= _APART else total.add_(stage[i], alpha=c)
    assert total is not None
    return total


def weighted(coefficients: Sequence[float], stages: Sequence[Leaves]) -> Leaves:
    """sum_i coefficients[i] * stages[i], leaf by leaf, in this order.

    One elementwise operation a term, never a matrix product: the sum of a row then does not depend on the rows beside
    it, so a sample's result is the same bit for bit in any batch.
    """
    if coefficients.count(0.0) == len(coefficients):
        return tuple(torch.zeros_like(leaf) for leaf in stages[0])
    kind = arithmetic()
    out: list[Tensor] = []
    for i in range(len(stages[0])):
        out.append(_sum(coefficients, stages, i, kind))
    return tuple(out)


def along(y: Leaves, dt: Leaves, slope: Leaves) -> Leaves:
    """y + dt * slope, with dt spread over the leaves."""
    triples = zip(y, slope, dt, strict=True)
    return tuple([x + k * h if x.is_complex() else torch.addcmul(x, k, h) for x, k, h in triples])


def moved(
    y: Leaves, dt: Leaves, coefficients: Sequence[float], stages: Sequence[Leaves], kind: int | None = None
) -> Leaves:
    """y + dt * sum_i coefficients[i] * stages[i], with dt spread over the leaves. kind: see `arithmetic`.

    Summed as `weighted` does. Tried: slopes side by side and one matrix-vector product, which saves two operations of
    eight on a small state, and takes half as long again as these on one of 512 x 256.
    """
    kind, terms = arithmetic() if kind is None else kind, len(coefficients) - coefficients.count(0.0)
    if kind == _VMAPPED:  # in-place operations are for tensors that are all batched
        return along(y, dt, weighted(coefficients, stages))
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
            out.append(torch.addcmul(x, total, h, out=total if kind == _OWNED else None))
    return tuple(out)


def scale(dt: Leaves, leaves: Leaves) -> Leaves:
    """dt * leaves, with dt spread over the leaves."""
    return tuple(map(torch.mul, leaves, dt))


def select(mask: bool | Tensor, yes: Leaves, no: Leaves) -> Leaves:
    """Lane by lane `yes` where the mask holds, else `no`. A Python bool (one lane, on the host) copies nothing."""
    if isinstance(mask, bool):
        return yes if mask else no
    return tuple(
        torch.where(mask.view(mask.shape + (1,) * (a.ndim - mask.ndim)), a, b) for a, b in zip(yes, no, strict=True)
    )


def dot(a: Leaves, b: Leaves, batched: bool) -> Tensor:
    """Real inner product of two states, as a lane in float64 (or the widest real dtype at hand)."""
    total: Tensor | None = None
    for x, y in zip(a, b, strict=True):
        product = (x.conj() * y).real if x.is_complex() else x * y
        part = rows(product).sum(1) if batched else product.sum()
        total = part if total is None else total + part
    assert total is not None  # solve refuses an empty state
    return total
