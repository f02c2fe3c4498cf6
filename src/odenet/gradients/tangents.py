"""Directions of forward-mode sensitivities: one for every number that requires a gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..core.leaves import real_dtype


class Directions:
    """Seed tangents of the inputs, and gradients from the tangents of outputs.

    inputs: the `states` leaves of y0, ts and stop times, then tensors shared by all samples. In a per-sample solve,
        each number of one sample's state and times has one direction for all samples, as samples do not interact. A
        complex number has two directions: real and imaginary.
    seeds: for each input its tangents, (P, *shape), with P directions in all.
    """

    def __init__(self, inputs: Sequence[Tensor], states: int, batched: bool) -> None:
        self.batched = batched
        self.per_sample = [batched and i < states + 2 for i in range(len(inputs))]
        units = [
            _units(x, per_sample) if x.requires_grad else x.new_zeros(0, *x.shape)
            for x, per_sample in zip(inputs, self.per_sample, strict=True)
        ]
        self.sizes = [len(x) for x in units]
        self.count = sum(self.sizes)
        self.seeds: list[Tensor] = []
        for i, x in enumerate(units):
            seed = x.new_zeros(self.count, *x.shape[1:])
            seed[sum(self.sizes[:i]) : sum(self.sizes[: i + 1])] = x
            self.seeds.append(seed)

    def gradients(self, tangents: Sequence[Tensor], cotangents: Sequence[Tensor | None]) -> list[Tensor | None]:
        """The gradient of each input: products of the tangents (P, ...) of every output with its cotangent.

        In a per-sample solve the second axis of tangents is the batch.
        """
        total: Tensor | None = None
        for tangent, bar in zip(tangents, cotangents, strict=True):
            if bar is None:
                continue
            product = (bar.conj() * tangent).real if tangent.is_complex() else bar * tangent
            product = torch.where(bar == 0, 0.0, product)  # tangents of unused outputs may have overflowed
            sums = product.reshape(*product.shape[: 1 + self.batched], -1).sum(-1)
            sums = sums.to(torch.promote_types(sums.dtype, torch.float32))
            total = sums if total is None else total + sums
        if total is None:
            return [None] * len(self.seeds)
        return [
            self._gradient(*columns)
            for columns in zip(total.split(self.sizes), self.seeds, self.per_sample, strict=True)
        ]

    def _gradient(self, gradient: Tensor, seed: Tensor, per_sample: bool) -> Tensor | None:
        if not len(gradient):
            return None
        if self.batched:
            gradient = gradient.T if per_sample else gradient.sum(-1)
        gradient = gradient.to(real_dtype(seed.dtype))
        if seed.is_complex():
            gradient = torch.complex(*gradient.chunk(2, -1))
        return gradient.reshape(seed.shape[1:])


def _units(x: Tensor, per_sample: bool) -> Tensor:
    """One unit tangent for each number of x, or of one sample of x, (P, *x.shape)."""
    shape = (1, *x.shape[1:]) if per_sample else x.shape
    units = torch.eye(torch.Size(shape).numel(), dtype=x.dtype, device=x.device)
    units = torch.cat([units, 1j * units]) if x.is_complex() else units
    return units.view(len(units), *shape).expand(-1, *x.shape)
