"""Products of a field's transposed Jacobian with directions: by its own method, else by reverse-mode derivatives.

Reverse mode, since of the two it is the faster one in training, has a derivative of every operation, and is compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor


def vjp_of(function: Callable[..., Any], *primals: Any) -> tuple[Any, Callable[..., Any]]:
    """torch.func.vjp without its third result, which only `has_aux` gives."""
    return cast("tuple[Any, Callable[..., Any]]", torch.func.vjp(function, *primals))


def transposed_products(
    field: Callable[..., Tensor], t: Tensor, y: Tensor, directions: Tensor, args: tuple[Any, ...]
) -> tuple[Tensor, Tensor]:
    """dy/dt (B, *event), and J^T times directions (B, K, *event), which has their shape.

    field: each row of dy/dt depends on its own row of y alone.
    """
    if y.ndim == 2 and hasattr(field, "with_vjp"):
        return field.with_vjp(t, y, directions, *args)  # pyright: ignore[reportFunctionMemberAccess]
    dy, backward = vjp_of(lambda x: field(t, x, *args), y)

    def product(v: Tensor) -> Tensor:
        return backward(v)[0]

    if directions.shape[1] == 1:
        return dy, product(directions[:, 0]).unsqueeze(1)
    # over the first axis: with another one, vmap fails where the product is a constant
    return dy, torch.func.vmap(product)(directions.movedim(1, 0)).movedim(0, 1)
