"""Types of right-hand sides: the caller's f, and fields on leaves."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from .leaves import Leaves


class UserField(Protocol):
    """The caller's f(t, y, *args) -> dy/dt: a function, a `torch.nn.Module`, a `functools.partial`.

    t: (), or (B,) with per_sample. y and the result: a tensor or a pytree of tensors, of the same structure, shapes and
    dtypes. args: the further arguments of the solve.
    """

    def __call__(self, t: Tensor, y: Any, /, *args: Any, **kwargs: Any) -> Any: ...


class Field(Protocol):
    """A right-hand side as a step evaluates it: dy/dt at time t, () or (B,), and state y."""

    def __call__(self, t: Tensor, y: Leaves, /) -> Leaves: ...


class SolveField(Protocol):
    """The right-hand side of a solve: `VectorField`, and the fields of a traced solve and of a backward solve.

    side: -1 or +1, () or (B,), evaluates the one-sided limit at a jump, just before or just after t; 0, or None for all
    samples, evaluates at t itself.
    """

    def __call__(self, t: Tensor, y: Leaves, /, side: Tensor | None = None) -> Leaves: ...

    @property
    def calls(self) -> int:
        """The number of evaluations."""
        ...

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        """The dtypes of the leaves in the caller's structure."""
        ...

    def pack(self, leaves: Leaves) -> Any:
        """The state in the caller's structure and dtypes."""
        ...
