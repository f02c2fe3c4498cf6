"""States flattened into one vector, and torchdiffeq's norms of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...core.leaves import Leaves


def to_vector(y: Leaves) -> Tensor:
    """All leaves as one vector; a single leaf keeps its shape."""
    return y[0] if len(y) == 1 else torch.cat([x.reshape(-1) for x in y])


def from_vector(flat: Tensor, like: Leaves) -> Leaves:
    """The leaves of a vector made by `to_vector`."""
    return (flat,) if len(like) == 1 else flat_to_shape(flat, (), [x.shape for x in like])


def flat_to_shape(tensor: Tensor, length: Sequence[int], shapes: Sequence[torch.Size]) -> tuple[Tensor, ...]:
    """Split a vector (*length, n) into tensors (*length, *shape)."""
    chunks = tensor.split([s.numel() for s in shapes], -1)
    return tuple(chunk.reshape((*length, *s)) for chunk, s in zip(chunks, shapes, strict=True))


def rms_norm(tensor: Tensor) -> Tensor:
    return tensor.abs().pow(2).mean().sqrt()


def mixed_norm(tensors: Iterable[Tensor]) -> Any:
    return max((rms_norm(x) for x in tensors), default=0.0)


def linf_norm(tensor: Tensor) -> Tensor:
    return tensor.abs().max()


def zero_norm(tensor: Tensor) -> float:
    return 0.0


def largest_rms(leaves: Sequence[Tensor]) -> Tensor:
    """The largest root mean square of several tensors, 0-d float64."""
    return torch.stack([x.abs().square().mean(dtype=torch.float64).sqrt() for x in leaves]).amax()


def vector_norm(norm: Callable[..., Any] | None, shapes: Sequence[torch.Size] | None) -> Callable[[Tensor], Any]:
    """The norm of a state flattened into one vector: the user's, which gets a tuple, or the default."""
    if shapes is None:
        return rms_norm if norm is None else norm
    tuple_norm = mixed_norm if norm is None else norm
    return lambda flat: tuple_norm(flat_to_shape(flat, (), shapes))


def handle_adjoint_norm_(adjoint_options: dict[str, Any], shapes: Any, state_norm: Callable[[Tensor], Any]) -> None:
    """Set adjoint_options["norm"] to a norm of the whole backward state (t, y, adj_y, *params).

    y and adj_y are one vector each if the state is a tuple. A norm that is already set gets them unpacked.
    """
    user_norm = adjoint_options.get("norm")

    def norm(state: Sequence[Tensor]) -> Any:
        t, y, a, *params = state
        if callable(user_norm):
            if shapes is None:
                return user_norm((t, y, a, *params))
            return user_norm((t, *flat_to_shape(y, (), shapes), *flat_to_shape(a, (), shapes), *params))
        norms = [t.abs(), state_norm(y), state_norm(a)]
        return max(norms if user_norm == "seminorm" else [*norms, mixed_norm(params)])

    adjoint_options["norm"] = norm
