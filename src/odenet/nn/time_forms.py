"""The forms in which a velocity network takes its time, and a call in each of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast, final

import torch
from torch import Tensor

from ..core.pytrees import flatten, tree_map, unflatten
from ..core.validate import one_of
from .call_order import CallOrder

TimeForm = Literal["(B,)", "(B, 1)", "(B, 1, ...)", "()", "cat", "channel", "none"]

TWO_TENSORS: tuple[TimeForm, ...] = ("(B,)", "(B, 1)", "(B, 1, ...)", "()")
ONE_TENSOR: tuple[TimeForm, ...] = ("none", "cat", "channel")


def time_form(form: Any, order: CallOrder) -> TimeForm:
    """The form, if the network can be called so. Raises TypeError or ValueError."""
    one_of("time", form, TWO_TENSORS + ONE_TENSOR)
    fitting = TWO_TENSORS if order.has("t") else ONE_TENSOR
    if form not in fitting:
        kinds = ", ".join(map(repr, fitting))
        cure = "give order= without t" if order.has("t") else 'give order= with t, such as order="x, t"'
        raise ValueError(f'time={form!r} does not fit a network called as "{order}": write one of {kinds}, or {cure}')
    return form


@final
@dataclass(frozen=True)
class NetworkCall:
    """A call of the network with its time in one form.

    shared: the context has no leading axis of the batch, even if its size is B. unmapped: why a network of form "()"
    cannot be mapped over samples.
    """

    order: CallOrder
    form: TimeForm
    shared: bool = False
    unmapped: str = ""

    def __call__(self, network: Callable[..., Any], t: Tensor, x: Tensor, context: tuple[Any, ...]) -> Tensor:
        """The network's tensor for t () or (B,), x (B, ...)."""
        if self.form == "()":
            return self._one_time(network, t, x, context) if t.ndim == 0 else self._mapped(network, t, x, context)
        if self.form in ("cat", "channel"):
            axis = -1 if self.form == "cat" else 1
            x = torch.cat([x, _entry(t, x, axis)], axis)
        elif self.form != "none":
            t = t.expand(len(x)) if t.ndim == 0 else t
            ones = {"(B,)": 0, "(B, 1)": 1}.get(self.form, x.ndim - 1)
            t = t.reshape(-1, *[1] * ones)
        return self._one_time(network, t, x, context)

    def _one_time(self, network: Callable[..., Any], t: Tensor, x: Tensor, context: tuple[Any, ...]) -> Tensor:
        args, keywords = self.order.bind(t, x, context)
        return _tensor(network(*args, **keywords))

    def _mapped(self, network: Callable[..., Any], t: Tensor, x: Tensor, context: tuple[Any, ...]) -> Tensor:
        """Each sample as a batch of its own, with its own time."""
        if self.unmapped:
            raise ValueError(
                "the network takes one time for the whole batch, and torch.func.vmap cannot give each sample its own: "
                f"{self.unmapped}; let it take t of shape (B,), or solve without per_sample"
            )
        leaves, spec = flatten(context)
        rows = [i for i, leaf in enumerate(leaves) if has_rows(leaf, len(x), self.shared)]

        def one(t: Tensor, x: Tensor, *own: Tensor) -> Tensor:
            filled = list(leaves)
            for i, leaf in zip(rows, own, strict=True):
                filled[i] = leaf
            return self._one_time(network, t, x, unflatten(filled, spec)).squeeze(0)

        batches = [leaves[i].unsqueeze(1) for i in rows]
        return torch.func.vmap(one, randomness="different")(t, x.unsqueeze(1), *batches)


def has_rows(leaf: Any, batch: int, shared: bool) -> bool:
    """True for a tensor of the context with a row for each sample."""
    return not shared and isinstance(leaf, Tensor) and leaf.ndim > 0 and len(leaf) == batch


def context_rows(context: tuple[Any, ...], index: Tensor, batch: int, shared: bool) -> tuple[Any, ...]:
    """The context of some samples."""
    return tree_map(lambda leaf: leaf[index] if has_rows(leaf, batch, shared) else leaf, context)


def _entry(t: Tensor, x: Tensor, axis: int) -> Tensor:
    """t as one more entry along an axis of x."""
    shape = list(x.shape)
    shape[axis] = 1
    return t.reshape(-1, *[1] * (x.ndim - 1)).expand(shape)


def _tensor(out: Any) -> Tensor:
    """What a network returned: a tensor, a tuple that holds one, or an object with a tensor `sample`."""
    if isinstance(out, (tuple, list)) and len(cast(list[Any], out)) == 1:
        out = cast(list[Any], out)[0]
    if not isinstance(out, Tensor):
        out = getattr(out, "sample", out)
    if not isinstance(out, Tensor):
        raise TypeError(
            f"the network returned a {type(out).__name__}: adapt takes a tensor, a tuple of one tensor or an object "
            "with a tensor .sample; give a function that picks the velocity"
        )
    return out
