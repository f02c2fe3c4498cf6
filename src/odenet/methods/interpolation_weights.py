"""Weights of exponential multistep methods: integrals of interpolants of the data prediction along a path.

With s = alpha / sigma and z = x / sigma a flow obeys dz/ds = D, where D is its prediction of the data. So from s0 to s1

    x1 = alpha1 D0 + sigma1 E0 + sigma1 int (D(s) - D0) ds,      E0 = (x0 - alpha0 D0) / sigma0.

D(s) interpolates known values, in one of two spaces of functions: `LogRatio` or `NoiseShare`. All coefficients are of
shape (), or (B,) per sample.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

_SERIES_TERMS = 18  # h^18 / 18! is below the rounding of float64 for h <= 1


class Interpolation(ABC):
    """Interpolation at nodes of a path: node 0 is the end of a step, node 1 its start, the others are its history.

    alpha, sigma: one tensor for each node.
    """

    def __init__(self, alpha: Sequence[Tensor], sigma: Sequence[Tensor]) -> None:
        self.alpha, self.sigma = alpha, sigma

    @abstractmethod
    def known(self, i: int, available: Tensor, most: int) -> Tensor:
        """How many of the nodes i + 1, i + 2... to use in the step from node i; -1: not even that at its end.

        available: of them have a value. most: are wanted.
        """

    @abstractmethod
    def basis(self, i: int, j: int, k: int) -> Tensor:
        """The k-th basis function at node j, k = 1, 2...; zero of order k at node i."""

    @abstractmethod
    def moments(self, i: int, count: int) -> list[Tensor]:
        """sigma1 int basis_k ds for k = 1..count, over the step from node i to node i - 1."""

    def weights(self, i: int, known: Tensor, most: int, with_end: bool) -> list[Tensor]:
        """c_j with sigma1 int (D(s) - D_i) ds = sum_j c_j (D_j - D_i) for the step from node i to node i - 1.

        The nodes j are i - 1 if with_end, then i + 1, i + 2... up to `most`, of which `known` are used, () or (B,); the
        weights of the others are zero.
        """
        nodes = ([i - 1] if with_end else []) + list(range(i + 1, i + 1 + most))
        size, out = len(nodes), [torch.zeros_like(known)] * len(nodes)
        table = [[self.basis(i, j, k) for j in nodes] for k in range(1, size + 1)]
        for n in range(1, size + 1):
            use = known == n - with_end
            # nodes that are not used may coincide: a unit matrix keeps infinity out of the backward pass
            rows = [[torch.where(use, table[k][j], float(j == k)) for j in range(n)] for k in range(n)]
            for j, c in enumerate(_solve(rows, self.moments(i, n))):
                out[j] = torch.where(use, c, out[j])
        return out


def _solve(rows: list[list[Tensor]], right: list[Tensor]) -> list[Tensor]:
    """The solution of a small linear system by elimination, without pivoting; elementwise over samples."""
    if len(rows) == 1:
        return [right[0] / rows[0][0]]
    (pivot, *first), *others = rows
    smaller: list[list[Tensor]] = []
    remaining: list[Tensor] = []
    for row, x in zip(others, right[1:], strict=True):
        factor = row[0] / pivot
        smaller.append([a - factor * b for a, b in zip(row[1:], first, strict=True)])
        remaining.append(x - factor * right[0])
    later = _solve(smaller, remaining)
    total = right[0]
    for a, x in zip(first, later, strict=True):
        total = total - a * x
    return [total / pivot, *later]


@final
class LogRatio(Interpolation):
    """Polynomials in lambda = log s, as published; the basis is (lambda - lambda_i)^k.

    Lu et al. 2022 and Zhao et al. 2023. With one node beside node i the first moment is alpha h (1 - e^-h) / 2, which
    differs from the exact one by O(h^3): that is DPM-Solver++(2M), Algorithm 2 of Lu et al., and the a_1 = 1/2 of UniPC
    for B(h) = e^h - 1. Nodes at which lambda is infinite are left out, the limit of the formulas.
    """

    def __init__(self, alpha: Sequence[Tensor], sigma: Sequence[Tensor]) -> None:
        super().__init__(alpha, sigma)
        self.finite = [(a > 0) & (b > 0) for a, b in zip(alpha, sigma, strict=True)]
        self.log_ratio: list[Tensor] = []
        for a, b, finite in zip(alpha, sigma, self.finite, strict=True):
            self.log_ratio.append(torch.log(torch.where(finite, a, 1.0)) - torch.log(torch.where(finite, b, 1.0)))

    def known(self, i: int, available: Tensor, most: int) -> Tensor:
        total = torch.zeros_like(available)
        for k in range(most):
            total = total + (self.finite[i + 1 + k] & (available > k)).to(total.dtype)
        return torch.where(self.finite[i] & self.finite[i - 1] & (available >= 0), total, -1.0)

    def basis(self, i: int, j: int, k: int) -> Tensor:
        return (self.log_ratio[j] - self.log_ratio[i]) ** k

    def moments(self, i: int, count: int) -> list[Tensor]:
        alpha, h = self.alpha[i - 1], self.log_ratio[i - 1] - self.log_ratio[i]
        if count == 1:
            return [-alpha * h * torch.expm1(-h) / 2]
        return [alpha * h**k * x for k, x in enumerate(exponential_moments(h, count), 1)]


def exponential_moments(h: Tensor, count: int) -> list[Tensor]:
    """h int_0^1 e^(-h (1 - x)) x^k dx for k = 1..count; h: zero or positive."""
    small = h < 1.0
    low, high = torch.where(small, h, 0.5), torch.where(small, 1.0, h)
    powers = (-low).unsqueeze(-1) ** torch.arange(_SERIES_TERMS, device=h.device, dtype=h.dtype)
    by_recurrence = -torch.expm1(-high)
    out: list[Tensor] = []
    for k in range(1, count + 1):
        by_recurrence = 1.0 - k * by_recurrence / high  # its rounding error grows by k / h
        series = [math.factorial(k) / math.factorial(n + k + 1) for n in range(_SERIES_TERMS)]
        by_series = low * (powers * torch.tensor(series, device=h.device, dtype=h.dtype)).sum(-1)
        out.append(torch.where(small, by_series, by_recurrence))
    return out


@final
class NoiseShare(Interpolation):
    """The span of 1, r^2, r^3, r^4 with r = sigma / (alpha + sigma), which is 1 - t on the path `cond_ot`.

    lambda is infinite at both ends of such a path, and equal steps of time cannot resolve it near them: the error of
    any polynomial in it is O(h^2). In r they are as good as elsewhere: D is smooth near the noise, where r is smooth in
    s; near the data it has no linear term, as dD/dt = -(sigma / alpha) dE/dt.

    The basis is (x - 1)^k (k x + 1) with x = r / r_i. From ds = -dr / r^2 its moments are (-1)^k q^(k+1) (alpha1 +
    sigma1), with q = 1 - r1 / r0.
    """

    def __init__(self, alpha: Sequence[Tensor], sigma: Sequence[Tensor]) -> None:
        super().__init__(alpha, sigma)
        self.r = [b / (a + b) for a, b in zip(alpha, sigma, strict=True)]

    def known(self, i: int, available: Tensor, most: int) -> Tensor:
        return available.clamp(max=most)

    def basis(self, i: int, j: int, k: int) -> Tensor:
        change = self._relative_change(i, j)
        return change**k * (k * change + (k + 1.0))

    def moments(self, i: int, count: int) -> list[Tensor]:
        total, q = self.alpha[i - 1] + self.sigma[i - 1], -self._relative_change(i, i - 1)
        return [(-1.0) ** k * total * q ** (k + 1) for k in range(1, count + 1)]

    def _relative_change(self, i: int, j: int) -> Tensor:
        """r_j / r_i - 1. r_i is zero only where a step has no length."""
        r = self.r[i]
        return (self.r[j] - r) / torch.where(r > 0, r, 1.0)
