"""The field of a traced solve: the user's f on leaves, without counting or captured tensors."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..core.leaves import Leaves, cast
from ..core.pytrees import flatten, flatten_like, unflatten


def with_cloned_tensors(f: Callable[..., Any]) -> Callable[..., Any]:
    """A module f that clones its parameters within each evaluation.

    PyTorch's loop operator forbids inputs that share memory, and TorchDynamo makes inputs of views that an attribute
    returns (`w.T`) and of tensors that a module stores beside the parameters that they are views of.
    """
    if not isinstance(f, nn.Module):
        return f
    copies = {k: x.clone() for k, x in f.named_parameters()}
    if not f.training:  # in training mode a buffer may be updated in place, which a clone would hide
        copies |= {k: x.clone() for k, x in f.named_buffers()}

    def with_copies(t: Tensor, y: Any, *args: Any) -> Any:
        return torch.func.functional_call(f, {k: clone_with_strides(x) for k, x in copies.items()}, (t, y, *args))

    return with_copies


def clone_with_strides(x: Tensor) -> Tensor:
    """A clone of x whose cotangent always has the strides of x, as the loop operator requires."""
    return x.reshape(-1).clone().view(x.shape) if x.is_contiguous() else x.clone()


class TracedField:
    """A `VectorField` without internal state, which would be a side effect inside an operator's graph."""

    calls = 0
    checked = True
    captured = None
    random = False
    save = None

    def __init__(
        self,
        f: Callable[..., Any],
        y0: Any,
        dtypes: tuple[torch.dtype, ...],
        time_dtype: torch.dtype,
        args: tuple[Any, ...],
    ) -> None:
        self._f, self._spec, self.dtypes, self.time_dtype, self._args = f, flatten(y0)[1], dtypes, time_dtype, args

    def with_function(self, f: Callable[..., Any], args: tuple[Any, ...]) -> TracedField:
        """The same field with another function and other args."""
        copied = copy.copy(self)
        copied._f, copied._args = f, args
        return copied

    def pack(self, leaves: Leaves) -> Any:
        """The state in the user's structure and dtypes."""
        return unflatten([cast(x, d) for x, d in zip(leaves, self.dtypes, strict=True)], self._spec)

    def __call__(self, t: Tensor, y: Leaves, side: Tensor | None = None) -> Leaves:
        t = cast(t, self.time_dtype)
        if side is not None:
            infinite = torch.where(side == 0, t, side.to(t.dtype) * torch.inf)
            t = t + (torch.nextafter(t, infinite) - t).detach()
        out, spec = flatten_like(self._f(t, self.pack(y), *self._args), self._spec)
        if spec != self._spec:
            raise TypeError(f"f returned the structure {spec}, but y has {self._spec}: return dy/dt with y's structure")
        for k, x in zip(out, y, strict=True):
            if k.shape != x.shape:
                raise ValueError(
                    f"f returned the shape {tuple(k.shape)} for y of shape {tuple(x.shape)}: return dy/dt in y's shape"
                )
        return tuple(cast(k, x.dtype) for k, x in zip(out, y, strict=True))
