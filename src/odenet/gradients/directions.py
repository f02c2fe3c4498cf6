"""The directions that forward-mode sensitivities are taken in: one for every number that asks for a gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..core.leaves import real_dtype


class Directions:
    """Seeds, and the way back from them to gradients.

    inputs: y0's leaves (`states` of them), ts and stops, then what all samples share. Per sample the first kinds have a
    direction for each number of one sample, as samples do not meet. A complex number has two: real and imaginary.

    seeds: for each input its tangents, (P, *shape); P directions in all.
    """

    def __init__(self, needed: Sequence[bool], inputs: Sequence[Tensor], states: int, batched: bool) -> None:
        self.needed, self.batched = needed, batched
        self.lanes = [batched and i < states + 2 for i in range(len(inputs))]
        self.shapes = [x.shape for x in inputs]
        self.dtypes = [x.dtype for x in inputs]
        sizes = [self._size(i) if need else 0 for i, need in enumerate(needed)]
        self.count = sum(sizes)
        self.seeds: list[Tensor] = []
        self.first = [sum(sizes[:i]) for i in range(len(sizes))]
        self.sizes = sizes
        for i, x in enumerate(inputs):
            self.seeds.append(self._seed(i, x))

    def _numbers(self, i: int) -> int:
        """Of one sample where samples do not meet."""
        shape = self.shapes[i][1:] if self.lanes[i] else self.shapes[i]
        return shape.numel()

    def _size(self, i: int) -> int:
        return self._numbers(i) * (2 if self.dtypes[i].is_complex else 1)

    def _seed(self, i: int, x: Tensor) -> Tensor:
        seed = x.new_zeros(self.count, *x.shape)
        if not self.sizes[i]:
            return seed
        n = self._numbers(i)
        units = torch.eye(n, dtype=x.dtype, device=x.device)
        units = torch.cat([units, 1j * units]) if x.is_complex() else units
        rows = len(units)
        block = units.view(rows, 1, *x.shape[1:]) if self.lanes[i] else units.view(rows, *x.shape)
        seed[self.first[i] : self.first[i] + rows] = block
        return seed

    def gradients(self, tangents: Sequence[Tensor], cotangents: Sequence[Tensor | None]) -> list[Tensor | None]:
        """For each input its gradient: the products of every output's tangents (P, ...) with its cotangent.

        Per sample the outputs' second axis is the batch.
        """
        total: Tensor | None = None
        for tangent, bar in zip(tangents, cotangents, strict=True):
            if bar is None:
                continue
            product = (bar.conj() * tangent).real if tangent.is_complex() else bar * tangent
            product = torch.where(bar == 0, 0.0, product)  # what nobody asks for may have overflowed
            part = product.reshape(*product.shape[: 1 + self.batched], -1).sum(-1)
            part = part.to(torch.promote_types(part.dtype, torch.float32))
            total = part if total is None else total + part
        return [self._gradient(i, total) for i in range(len(self.shapes))]

    def _gradient(self, i: int, total: Tensor | None) -> Tensor | None:
        if not self.sizes[i] or total is None:
            return None
        found = total[self.first[i] : self.first[i] + self.sizes[i]]
        if self.batched:
            found = found.T if self.lanes[i] else found.sum(-1)
        found = found.to(real_dtype(self.dtypes[i]))
        if self.dtypes[i].is_complex:
            found = torch.complex(*found.chunk(2, -1))
        return found.reshape(self.shapes[i])
