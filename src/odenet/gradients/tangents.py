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

    def __init__(self, inputs: Sequence[Tensor], states: int, batched: bool) -> None:
        self.batched = batched
        self.per_sample = [batched and i < states + 2 for i in range(len(inputs))]
        units = [
            _units(x, lane) if x.requires_grad else x.new_zeros(0, *x.shape)
            for x, lane in zip(inputs, self.per_sample, strict=True)
        ]
        self.sizes = [len(x) for x in units]
        self.count = sum(self.sizes)
        self.seeds: list[Tensor] = []
        for i, x in enumerate(units):
            seed = x.new_zeros(self.count, *x.shape[1:])
            seed[sum(self.sizes[:i]) : sum(self.sizes[: i + 1])] = x
            self.seeds.append(seed)

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
        if total is None:
            return [None] * len(self.seeds)
        return [
            self._gradient(*given) for given in zip(total.split(self.sizes), self.seeds, self.per_sample, strict=True)
        ]

    def _gradient(self, found: Tensor, seed: Tensor, lane: bool) -> Tensor | None:
        if not len(found):
            return None
        if self.batched:
            found = found.T if lane else found.sum(-1)
        found = found.to(real_dtype(seed.dtype))
        if seed.is_complex():
            found = torch.complex(*found.chunk(2, -1))
        return found.reshape(seed.shape[1:])


def _units(x: Tensor, lane: bool) -> Tensor:
    """A tangent of x for each of its numbers; with a lane a sample for each of those of one sample."""
    shape = (1, *x.shape[1:]) if lane else x.shape
    units = torch.eye(torch.Size(shape).numel(), dtype=x.dtype, device=x.device)
    units = torch.cat([units, 1j * units]) if x.is_complex() else units
    return units.view(len(units), *shape).expand(-1, *x.shape)
