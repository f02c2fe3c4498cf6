"""Types of right-hand sides: the caller's f, and fields on leaves."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from .leaves import Leaves


class UserField(Protocol):
    """The caller's f(t, y, *args) -> dy/dt: a function, a `torch.nn.Module`, a `functools.partial`.

    t: (), or (B,) with per_sample. y and the result: a tensor or a pytree of tensors, of the same structure, shapes and
    dtypes. args: the further arguments of the solve.
    """

    def __call__(self, t: Tensor, y: Any, /, *args: Any, **kwargs: Any) -> Any: ...


class Field(Protocol):
    """A right-hand side on leaves, as steps evaluate it: dy/dt at time t, () or (B,), and state y.

    side: -1 or +1, () or (B,), evaluates the one-sided limit at a jump, just before or just after t; 0, or None for all
    samples: at t itself.
    """

    def __call__(self, t: Tensor, y: Leaves, side: Tensor | None = None) -> Leaves: ...

    @property
    def calls(self) -> int:
        """The number of evaluations."""
        ...
