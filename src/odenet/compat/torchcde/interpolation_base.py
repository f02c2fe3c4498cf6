"""The interface of controls, and what those between knots have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ...core.validate import describe


class InterpolationBase(nn.Module, ABC):
    """A path X(t), (..., C). `cdeint` needs `derivative`, and the other members are for its caller."""

    @property
    @abstractmethod
    def grid_points(self) -> Tensor:
        """The knots, (K,)."""

    @property
    @abstractmethod
    def interval(self) -> Tensor:
        """The first and the last knot, (2,)."""

    @abstractmethod
    def evaluate(self, t: Any) -> Any:
        """X(t), (..., *t.shape, C)."""

    @abstractmethod
    def derivative(self, t: Any) -> Any:
        """dX/dt, (..., *t.shape, C)."""


class KnotInterpolation(InterpolationBase):
    """A path of one formula between each two knots. A knot belongs to the piece before it, as in torchcde.

    t: (K,), increasing; None: 0, 1, ..., K - 1. pieces: (..., K - 1, P), one row for each piece. Beyond the ends the
    first and last piece go on.
    """

    def __init__(self, t: Tensor | None, pieces: Tensor, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        count = pieces.shape[-2]
        if t is None:
            t = torch.arange(count + 1, dtype=pieces.dtype, device=pieces.device)
        if t.ndim != 1 or len(t) != count + 1:
            raise ValueError(
                f"t must be the times that the coefficients were made with, ({count + 1},) for coeffs of {count} "
                f"pieces; got {describe(t)}"
            )
        self._t: Tensor
        self._pieces: Tensor
        self.register_buffer("_t", t)
        self.register_buffer("_pieces", pieces)

    @property
    def grid_points(self) -> Tensor:
        return self._t

    @property
    def interval(self) -> Tensor:
        return torch.stack([self._t[0], self._t[-1]])

    def _interpret_t(self, t: Any) -> tuple[Tensor, Tensor]:
        """t less the knot before it, and the number of its piece; both of t's shape."""
        t = torch.as_tensor(t, dtype=self._pieces.dtype, device=self._pieces.device)
        u, index = self._locate(t.reshape(-1))
        return u.reshape(t.shape), index.reshape(t.shape)

    def _locate(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """`_interpret_t` of t, (S,)."""
        knots = self._t
        index = torch.bucketize(t, knots[1:-1])
        return t - knots.index_select(0, index), index

    @abstractmethod
    def _values(self, u: Tensor, index: Tensor) -> Tensor:
        """X, (..., S, C), at the times u after the start of the pieces `index`; both (S,)."""

    @abstractmethod
    def _slopes(self, u: Tensor, index: Tensor) -> Tensor:
        """dX/dt, as `_values`."""

    def evaluate(self, t: Any) -> Tensor:
        return self._at(self._values, t)

    def derivative(self, t: Any) -> Tensor:
        return self._at(self._slopes, t)

    def _at(self, formula: Callable[[Tensor, Tensor], Tensor], t: Any) -> Tensor:
        t = torch.as_tensor(t, dtype=self._pieces.dtype, device=self._pieces.device)
        out = formula(*self._locate(t.reshape(-1)))
        return out.reshape(*out.shape[:-2], *t.shape, out.shape[-1])


def checked_coeffs(coeffs: Any, rows: int, name: str) -> Tensor:
    """Coefficients, (..., at least `rows`, C)."""
    if not isinstance(coeffs, Tensor) or not coeffs.is_floating_point():
        raise ValueError(f"coeffs must be a tensor of floating point from {name}; got {describe(coeffs)}")
    if coeffs.ndim < 2 or coeffs.shape[-2] < rows:
        raise ValueError(f"coeffs must be (..., length, channels) with at least {rows} rows; got {describe(coeffs)}")
    return coeffs
