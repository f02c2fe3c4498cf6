"""The Jacobian of a multilayer perceptron in closed form: its trace, and products with it.

With weights W_1 .. W_n, slopes s_1 .. s_(n-1) of the activations at one input and a factor g of the output,
J = diag(g) W_n diag(s_(n-1)) W_(n-1) ... diag(s_1) W_1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn


class EvaluatedLayers(NamedTuple):
    """An evaluation of a perceptron from D to D numbers.

    out: (..., D). weights: of each layer, (width out, width in), the first one with the columns of the state alone.
    slopes: of each hidden activation, (..., width). out_factor: a factor of the output, (D,) or (..., D); None: 1.
    """

    out: Tensor
    weights: Sequence[Tensor]
    slopes: Sequence[Tensor]
    out_factor: Tensor | None = None

    def trace(self) -> Tensor:
        """The trace of the Jacobian, (...).

        With up to two hidden layers it is a bilinear form in their slopes, at the cost of one layer for any D. Deeper
        ones carry D tangents.
        """
        first, last, slopes, factor = self.weights[0], self.weights[-1], self.slopes, self.out_factor
        if factor is not None and factor.ndim == 1:
            last, factor = factor.unsqueeze(1) * last, None
        if not slopes:
            diagonal = last.diagonal()
            return (diagonal if factor is None else factor * diagonal).sum(-1).expand(self.out.shape[:-1])
        if len(slopes) == 1:
            product = last * first.t()  # (D, width)
            return (slopes[0] * (product.sum(0) if factor is None else factor @ product)).sum(-1)
        if len(slopes) == 2 and factor is None:
            return (slopes[1] * (slopes[0] @ ((first @ last) * self.weights[1].t()))).sum(-1)
        carried = slopes[0].unsqueeze(-2) * first.t()  # (..., D, width)
        for weight, slope in zip(self.weights[1:-2], slopes[1:-1], strict=True):
            carried = (carried @ weight.t()) * slope.unsqueeze(-2)
        last = last if factor is None else factor.unsqueeze(-1) * last
        return ((carried @ self.weights[-2].t()) * slopes[-1].unsqueeze(-2) * last).sum((-2, -1))

    def vjp(self, directions: Tensor) -> Tensor:
        """The transposed Jacobian times directions (..., K, D): (..., K, D)."""
        carried = directions
        if self.out_factor is not None:
            factor = self.out_factor
            carried = carried * (factor if factor.ndim == 1 else factor.unsqueeze(-2))
        for weight, slope in zip(reversed(self.weights[1:]), reversed(self.slopes), strict=True):
            carried = (carried @ weight) * slope.unsqueeze(-2)
        return carried @ self.weights[0]


def with_slope(activation: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """activation(x) and its derivative at x, for the activations of the library's fields."""
    out = activation(x)
    return out, _SLOPES[type(activation)](x, out)


def _silu(x: Tensor, out: Tensor) -> Tensor:
    sigmoid = torch.sigmoid(x)
    return sigmoid + out * (1.0 - sigmoid)


def _gelu(x: Tensor, out: Tensor) -> Tensor:
    density = torch.exp(-0.5 * x * x) / math.sqrt(2.0 * math.pi)
    return torch.special.ndtr(x) + x * density


_SLOPES: dict[type[nn.Module], Callable[[Tensor, Tensor], Tensor]] = {
    nn.Tanh: lambda x, out: 1.0 - out * out,
    nn.ReLU: lambda x, out: (x > 0).to(x.dtype),
    nn.Softplus: lambda x, out: torch.sigmoid(x),
    nn.SiLU: _silu,
    nn.GELU: _gelu,
    nn.ELU: lambda x, out: torch.where(x > 0, 1.0, out + 1.0),
}
