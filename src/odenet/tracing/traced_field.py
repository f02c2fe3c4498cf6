"""The field of a solve that is traced: the caller's f on leaves, with nothing counted and nothing looked for."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..core.leaves import Leaves, cast
from ..core.pytrees import flatten, flatten_like, unflatten


def with_cloned_tensors(f: Callable[..., Any]) -> Callable[..., Any]:
    """A module f with copies of its parameters, made within each evaluation.

    The loop operator of PyTorch allows no two inputs that share memory, and TorchDynamo makes inputs of the views that
    an attribute gives (`w.T`) and of tensors that a module keeps beside the parameters that they are views of.
    """
    if not isinstance(f, nn.Module):
        return f
    kept = {k: x.clone() for k, x in f.named_parameters()}
    if not f.training:  # in training a buffer may be changed in place, which a copy would hide
        kept |= {k: x.clone() for k, x in f.named_buffers()}

    def g(t: Tensor, y: Any, *args: Any) -> Any:
        return torch.func.functional_call(f, {k: clone_with_strides(x) for k, x in kept.items()}, (t, y, *args))

    return g


def clone_with_strides(x: Tensor) -> Tensor:
    """A copy of x, whose cotangent has the strides of x whatever made it: the loop operator asks for that."""
    return x.reshape(-1).clone().view(x.shape) if x.is_contiguous() else x.clone()


class TracedField:
    """A `VectorField` without memory: what it did to itself would be a side effect inside an operator's graph."""

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
        """The same with another function and other args."""
        other = copy.copy(self)
        other._f, other._args = f, args
        return other

    def pack(self, leaves: Leaves) -> Any:
        """The state in the caller's structure and dtypes."""
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
                raise ValueError(f"f returned the shape {tuple(k.shape)} for a y of {tuple(x.shape)}")
        return tuple(cast(k, x.dtype) for k, x in zip(out, y, strict=True))
