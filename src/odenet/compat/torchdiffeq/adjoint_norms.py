"""States as one vector, and torchdiffeq's norms of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...core.leaves import Leaves


def to_vector(y: Leaves) -> Tensor:
    """One vector of all leaves; a leaf alone as it is."""
    return y[0] if len(y) == 1 else torch.cat([x.reshape(-1) for x in y])


def from_vector(flat: Tensor, like: Leaves) -> Leaves:
    """The leaves that `joined` made `flat` of."""
    return (flat,) if len(like) == 1 else flat_to_shape(flat, (), [x.shape for x in like])


def flat_to_shape(tensor: Tensor, length: Sequence[int], shapes: Sequence[torch.Size]) -> tuple[Tensor, ...]:
    parts = tensor.split([s.numel() for s in shapes], -1)
    return tuple(part.reshape((*length, *s)) for part, s in zip(parts, shapes, strict=True))


def rms_norm(tensor: Tensor) -> Tensor:
    return tensor.abs().pow(2).mean().sqrt()


def mixed_norm(tensors: Iterable[Tensor]) -> Any:
    return max((rms_norm(x) for x in tensors), default=0.0)


def linf_norm(tensor: Tensor) -> Tensor:
    return tensor.abs().max()


def zero_norm(tensor: Tensor) -> float:
    return 0.0


def largest_rms(leaves: Sequence[Tensor]) -> Tensor:
    """The largest root mean square of several tensors."""
    return torch.stack([x.abs().square().mean(dtype=torch.float64).sqrt() for x in leaves]).amax()


def vector_norm(norm: Callable[..., Any] | None, shapes: Sequence[torch.Size] | None) -> Callable[[Tensor], Any]:
    """The norm of a state given as one vector: the caller's, which gets a tuple, or the default one."""
    if shapes is None:
        return rms_norm if norm is None else norm
    of_tuple = mixed_norm if norm is None else norm
    return lambda flat: of_tuple(flat_to_shape(flat, (), shapes))


def handle_adjoint_norm_(adjoint_options: dict[str, Any], shapes: Any, state_norm: Callable[[Tensor], Any]) -> None:
    """Put the norm of the whole backward state (t, y, adj_y, *params) into adjoint_options.

    y and adj_y are one vector each, where the state is a tuple. A norm that is there already gets it unpacked.
    """
    given = adjoint_options.get("norm")

    def norm(state: Sequence[Tensor]) -> Any:
        t, y, a, *params = state
        if callable(given):
            if shapes is None:
                return given((t, y, a, *params))
            return given((t, *flat_to_shape(y, (), shapes), *flat_to_shape(a, (), shapes), *params))
        parts = [t.abs(), state_norm(y), state_norm(a)]
        return max(parts if given == "seminorm" else [*parts, mixed_norm(params)])

    adjoint_options["norm"] = norm
