"""The latent state of many samples at times of each one's own, by one solve in each direction."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...api.option_types import SolveOptions
from ...api.solve import Solver, solve

# so short a solve is done sooner than the tape of the default gradient is set up
_DEFAULTS: dict[str, Any] = {"rtol": 1e-3, "atol": 1e-4, "gradient": "backprop"}
# a solve for all samples at all times is faster up to so many times as each one has (measured: docs/latent.md)
_UNION = 8


class LatentFlow(nn.Module):
    """z at times ts, of dz/dt = field(t, z) from z0 at `start`; ts may lie on both sides of it.

    field: called as field(t, z) with t () or (N,), z (N, latent). intensity: a module z -> (N, C), the logarithms of
    rates whose integrals from `start` on `with_integrals` solves for along with z; or None.

    Where the times of all samples are together few, one solve with common steps goes through them all; otherwise each
    sample has its own steps. per_sample=True or False among the solve_options decides it.
    """

    start: Tensor

    def __init__(
        self, field: nn.Module, intensity: nn.Module | None, start: float, solve_options: SolveOptions
    ) -> None:
        super().__init__()
        self.field, self.intensity = field, intensity
        self.register_buffer("start", torch.tensor(start))
        defaults = {k: v for k, v in _DEFAULTS.items() if k != "gradient" or not solve_options.get("compile")}
        self.solve_options = cast(SolveOptions, defaults | solve_options)
        Solver(self._slope, **self.solve_options)  # raises for a wrong option

    def forward(self, z0: Tensor, ts: Tensor) -> Tensor:
        """z at ts (B, Q), in any order: (S, B, Q, latent), from z0 (S, B, latent)."""
        return self._at(self._slope, z0, ts)

    def with_integrals(self, z0: Tensor, ts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z, the logarithms of the rates at ts, and the integrals of the rates from `start` to ts, (S, B, Q, C)."""
        assert self.intensity is not None
        latent = z0.shape[-1]
        zeros = torch.zeros_like(self.intensity(z0))
        both = self._at(partial(_slope_and_rates, self.field, self.intensity, latent), torch.cat([z0, zeros], -1), ts)
        z = both[..., :latent]
        return z, self.intensity(z), both[..., latent:]

    def _slope(self, t: Tensor, z: Tensor) -> Tensor:
        return self.field(t, z)

    def _at(self, slope: Callable[[Tensor, Tensor], Tensor], y0: Tensor, ts: Tensor) -> Tensor:
        samples, size, width = y0.shape
        if not ts.numel():
            return y0.new_zeros(samples, size, ts.shape[1], width)
        times = ts.detach()
        run = partial(self._both_ways, slope, y0.flatten(0, 1))
        if not self.solve_options.get("per_sample") and _all_have_the_same_in_order(times):
            ys = run({"per_sample": False, **self.solve_options}, times[0], 0)
            ys = ys.unflatten(1, (samples, size)).movedim(0, 2)
        else:
            ys = self._at_times_of_each(run, times, samples)
        if not ts.requires_grad:
            return ys
        rates = slope(ts.repeat(samples, 1).flatten(), ys.flatten(0, 2)).view(ys.shape)
        return ys + rates * (ts - ts.detach())[..., None]

    def _at_times_of_each(self, run: Callable[[Any, Tensor, int], Tensor], times: Tensor, samples: int) -> Tensor:
        """As `_at`, where each sample has times of its own, in any order."""
        size = len(times)
        union, index = torch.unique(times, return_inverse=True)
        options = {"per_sample": len(union) > _UNION * times.shape[1], **self.solve_options}
        if options["per_sample"]:
            times, order = times.sort(1)
            ys = run(options, times.repeat(samples, 1), 1).unflatten(0, (samples, size))
            return ys.gather(2, order.argsort(1)[None, :, :, None].expand(ys.shape))
        ys = run(options, union, 0).unflatten(1, (samples, size))
        return ys[index, :, torch.arange(size, device=times.device)[:, None]].movedim(2, 0)

    def _both_ways(
        self, slope: Callable[[Tensor, Tensor], Tensor], y0: Tensor, options: Any, times: Tensor, axis: int
    ) -> Tensor:
        """The states at increasing times (..., T), with those along `axis`: one solve ahead of start, one back."""
        start = self.start.to(times).expand(*times.shape[:-1], 1)

        def ahead(ts: Tensor) -> Tensor:
            return solve(slope, y0, torch.cat([start, ts], -1), **options).ys.narrow(axis, 1, times.shape[-1])

        def back(ts: Tensor) -> Tensor:
            return ahead(ts.flip(-1)).flip(axis)

        later = times >= start
        if bool(later.all()):
            return ahead(times)
        if not bool(later.any()):
            return back(times)
        later = later[..., None] if axis else later[:, None, None]
        return torch.where(later, ahead(times.maximum(start)), back(times.minimum(start)))


def _all_have_the_same_in_order(times: Tensor) -> bool:
    """Whether all samples have the same times, (B, Q), each after the one before."""
    return bool((times == times[0]).all()) and bool((times[0].diff() > 0).all())


def _slope_and_rates(field: nn.Module, intensity: nn.Module, latent: int, t: Tensor, y: Tensor) -> Tensor:
    z = y[..., :latent]
    return torch.cat([field(t, z), intensity(z).exp()], -1)
