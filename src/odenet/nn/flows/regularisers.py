"""Regularisers of a flow: integrals along its solve, which the step size does not depend on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

from ...core.serialization import settings_repr
from ...core.validate import describe, describe_shape, integer, number
from ...errors import unknown_name
from .jacobian_products import vjp_of
from .traces import Divergence, Field

Weights = Mapping[str, float] | Sequence[str]


class Regulariser(ABC):
    """A function of a state of the solve whose integral along the solve is penalised.

    needs_frobenius: it reads `Divergence.frobenius`.
    """

    needs_frobenius: bool = False

    @abstractmethod
    def __call__(self, field: Field, t: Tensor, y: Tensor, at: Divergence, args: tuple[Any, ...]) -> Tensor:
        """The integrand, (B,). at: the field and the derivatives that are known there."""

    def integrand(self, field: Field, t: Tensor, y: Tensor, at: Divergence, args: tuple[Any, ...]) -> Tensor:
        """The same, checked."""
        value: Any = self(field, t, y, at, args)
        if not isinstance(value, Tensor) or value.shape != y.shape[:1]:
            raise ValueError(
                f"the regulariser {self!r} must return one number for each sample, ({len(y)},); got "
                f"{describe_shape(value)}"
            )
        return value

    def __repr__(self) -> str:
        return settings_repr(self)


@final
class Kinetic(Regulariser):
    """||f||^2. Finlay et al. 2020, "How to train your neural ODE" (RNODE), (5). Half of it is OT-Flow's cost.

    factor: of the square.
    """

    def __init__(self, factor: float = 1.0) -> None:
        self.factor = number("factor", factor)

    def __call__(self, field: Field, t: Tensor, y: Tensor, at: Divergence, args: tuple[Any, ...]) -> Tensor:
        return self.factor * at.dy.flatten(1).square().sum(1)


@final
class Frobenius(Regulariser):
    """The squared Frobenius norm of df/dy, by the directions of the trace's estimate. Finlay et al. 2020, (6)."""

    needs_frobenius = True

    def __call__(self, field: Field, t: Tensor, y: Tensor, at: Divergence, args: tuple[Any, ...]) -> Tensor:
        assert at.frobenius is not None
        return at.frobenius


@final
class TaylorDerivative(Regulariser):
    """The squared norm of the solution's derivative of some order. Kelly et al. 2020 (TayNODE), (4).

    order: 2 or more; of 1 it is `Kinetic`. Its cost doubles with each order.
    """

    def __init__(self, order: int = 2) -> None:
        self.order = integer("order", order, 2, 10)

    def __call__(self, field: Field, t: Tensor, y: Tensor, at: Divergence, args: tuple[Any, ...]) -> Tensor:
        t = t.to(y.dtype)
        return _total_derivative(lambda s, x: field(s, x, *args), self.order - 1)(t, y).flatten(1).square().sum(1)


def _total_derivative(field: Field, order: int) -> Field:
    """The derivative of field(t, y) of some order along the solution: d/dt = partial d/dt + (df/dy) f, repeated."""
    if order == 0:
        return field
    inner = _total_derivative(field, order - 1)

    def derivative(t: Tensor, y: Tensor) -> Tensor:
        # the product with (1, f): the derivative of the vector-Jacobian product, which is linear in its vector
        value, backward = vjp_of(inner, t, y)
        _, forward = vjp_of(backward, torch.zeros_like(value))
        return forward((torch.ones_like(t), field(t, y)))[0]

    return derivative


REGULARISERS: dict[str, Regulariser] = {
    "kinetic": Kinetic(),
    "jacobian": Frobenius(),
    "taylor": TaylorDerivative(),
    "transport": Kinetic(0.5),
}


def weighted(regularisers: Any) -> dict[str, tuple[Regulariser, float]]:
    """Regularisers by name, with their weights: 1.0 where there is only a name."""
    if isinstance(regularisers, (str, bytes)) or not isinstance(regularisers, (Mapping, Sequence)):
        raise TypeError(
            "regularisers must be names, or a dict of names and weights such as {'kinetic': 0.01}; "
            f"got {describe(regularisers)}"
        )
    weights: Any = regularisers if isinstance(regularisers, Mapping) else dict.fromkeys(regularisers, 1.0)
    found: dict[str, tuple[Regulariser, float]] = {}
    for key, weight in weights.items():
        if not isinstance(key, (Regulariser, str)):
            raise TypeError(f"regularisers must be names or Regulariser objects; got {describe(key)}")
        if isinstance(key, str) and key not in REGULARISERS:
            raise unknown_name("regularisers", key, REGULARISERS)
        regulariser = key if isinstance(key, Regulariser) else REGULARISERS[key]
        name = key if isinstance(key, str) else repr(key)
        if name in found:  # two objects that look the same
            name = f"{name} {len(found) + 1}"
        weight = number(f"the weight of {name!r} in regularisers", weight)
        if not 0.0 <= weight < float("inf"):
            raise ValueError(
                f"the weight of {name!r} in regularisers must be zero or positive, and finite; got {weight}"
            )
        found[name] = regulariser, weight
    return found
