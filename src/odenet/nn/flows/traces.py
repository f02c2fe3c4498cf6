"""The trace of a field's Jacobian along a solve: exact, or estimated with random directions.

The directions are drawn once for a solve, so that the estimate is a smooth function of time, and each sample has its
own. An estimate is unbiased, and so is the log-density made of it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, final

import torch
from torch import Tensor

from ...core.serialization import settings_repr
from ...core.validate import integer, one_of
from .jacobian_products import transposed_products

TraceName = Literal["exact", "hutchinson", "hutch++"]
NoiseName = Literal["rademacher", "gaussian"]
Field = Callable[..., Tensor]


class Divergence(NamedTuple):
    """dy/dt (B, *event), the trace of its Jacobian (B,), and the squared Frobenius norm (B,) where it was asked for."""

    dy: Tensor
    trace: Tensor
    frobenius: Tensor | None = None


class Trace(ABC):
    """A way to get the trace of the Jacobian of a field."""

    def directions(
        self, field: Field, t: Tensor, y: Tensor, args: tuple[Any, ...], generator: torch.Generator | None
    ) -> tuple[Tensor, ...]:
        """The directions of a solve from (t, y), each (B, K, *event)."""
        return ()

    @abstractmethod
    def __call__(
        self,
        field: Field,
        t: Tensor,
        y: Tensor,
        directions: tuple[Tensor, ...],
        args: tuple[Any, ...],
        frobenius: bool = False,
    ) -> Divergence: ...

    def __repr__(self) -> str:
        return settings_repr(self)


@final
class ExactTrace(Trace):
    """The sum of the diagonal of the Jacobian.

    In closed form where the field has `with_trace(t, y, *args)`; else by D products with the Jacobian at once.
    """

    def __call__(
        self,
        field: Field,
        t: Tensor,
        y: Tensor,
        directions: tuple[Tensor, ...],
        args: tuple[Any, ...],
        frobenius: bool = False,
    ) -> Divergence:
        if hasattr(field, "with_trace") and not frobenius:
            dy, trace = field.with_trace(t, y, *args)  # pyright: ignore[reportFunctionMemberAccess]
            return Divergence(dy, trace.flatten(1).sum(1) if trace.ndim > 1 else trace)
        event, size = y.shape[1:], y[0].numel()
        basis = torch.eye(size, dtype=y.dtype, device=y.device).view(size, *event).expand(len(y), size, *event)
        dy, rows = transposed_products(field, t, y, basis, args)
        trace = (rows * basis).flatten(1).sum(1)
        return Divergence(dy, trace, rows.flatten(1).square().sum(1) if frobenius else None)


class _Estimate(Trace):
    """samples: the number of random directions v with E[v v^T] = I. noise: "rademacher" (+-1) or "gaussian"."""

    def __init__(self, samples: int = 1, noise: NoiseName = "rademacher") -> None:
        self.samples, self.noise = integer("samples", samples), one_of("noise", noise, ("rademacher", "gaussian"))

    def _draw(self, y: Tensor, generator: torch.Generator | None) -> Tensor:
        shape = (len(y), self.samples, *y.shape[1:])
        if self.noise == "gaussian":
            return torch.randn(shape, dtype=y.dtype, device=y.device, generator=generator)
        return torch.randint(0, 2, shape, device=y.device, generator=generator).to(y.dtype) * 2.0 - 1.0

    def __call__(
        self,
        field: Field,
        t: Tensor,
        y: Tensor,
        directions: tuple[Tensor, ...],
        args: tuple[Any, ...],
        frobenius: bool = False,
    ) -> Divergence:
        """directions: those of the estimate, and before them, if there is one, a basis whose part is exact."""
        *basis, v = directions
        rank = basis[0].shape[1] if basis else 0
        every = torch.cat(directions, 1) if basis else v
        dy, product = transposed_products(field, t, y, every, args)

        def total(terms: Tensor) -> Tensor:
            each = terms.flatten(2).sum(2)
            return each[:, :rank].sum(1) + each[:, rank:].mean(1)

        return Divergence(dy, total(every * product), total(product.square()) if frobenius else None)


@final
class Hutchinson(_Estimate):
    """The mean of v^T J v over the samples. Hutchinson 1990; Grathwohl et al. 2019, (7).

    With Rademacher noise its variance is ||J + J^T||^2 / 2 - 2 sum J_ii^2 over the number of samples.
    """

    def directions(
        self, field: Field, t: Tensor, y: Tensor, args: tuple[Any, ...], generator: torch.Generator | None
    ) -> tuple[Tensor, ...]:
        return (self._draw(y, generator),)


@final
class HutchPlusPlus(_Estimate):
    """The trace on the range of a sketch J^T S, plus Hutchinson's estimate on its complement. Meyer et al. 2021, 3.

    samples: columns of S, and as many directions of the estimate: an evaluation has twice as many products with J, of
    which a basis Q of J^T S is found at the start of the solve and kept. From D samples on it is exact. Q is a constant
    in derivatives: for any Q the estimate, and so its gradient, is unbiased.
    """

    def directions(
        self, field: Field, t: Tensor, y: Tensor, args: tuple[Any, ...], generator: torch.Generator | None
    ) -> tuple[Tensor, ...]:
        sketch, v = self._draw(y, generator), self._draw(y, generator)
        with torch.no_grad():
            _, product = transposed_products(field, t, y, sketch, args)
            basis = torch.linalg.qr(product.flatten(2).mT).Q.mT  # (B, K or D, D), orthonormal rows
            flat = v.flatten(2)
            v = (flat - flat @ basis.mT @ basis).view_as(v)
        return basis.reshape(len(y), -1, *y.shape[1:]), v


def trace_by_name(trace: TraceName | Trace, samples: int, noise: NoiseName) -> Trace:
    """A way to get the trace by its name, or the object itself."""
    integer("samples", samples)
    one_of("noise", noise, ("rademacher", "gaussian"))
    if isinstance(trace, Trace):
        return trace
    name = one_of("trace", trace, ("exact", "hutchinson", "hutch++"))
    if name == "exact":
        if samples != 1:
            raise ValueError(f"samples={samples} is of an estimate: trace='exact' has none; write trace='hutchinson'")
        return ExactTrace()
    return Hutchinson(samples, noise) if name == "hutchinson" else HutchPlusPlus(samples, noise)
