"""Any explicit one-step method made algebraically reversible.

McCallum & Foster 2024, "Efficient, Accurate and Stable Gradients for Neural ODEs" (arXiv 2410.11648): beside y a second
state z is carried, and with Psi_h(t, x) the increment of the base method from (t, x) over h,

    y1 = l y + (1 - l) z + Psi_h(t0, z),        z1 = z - Psi_-h(t1, y1),        z(t0) = y(t0),

which can be undone in closed form: z from z1 and y1, then y. The coupling l in (0, 1] draws y and z together: see
docs/gradients.md for what it does to stability forwards and to rounding backwards.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from ..core.dense import Coefficients
from ..core.leaves import Leaves
from .base import Field, Method, Step


@final
class ReversibleMethod(Method):
    """The reversible method on top of `base`, of the same order; twice its evaluations. The carry is z.

    inner: dtypes in which the base method steps, where y and z are carried in wider ones.
    """

    carry_is_slope = False

    def __init__(self, base: Method, coupling: float = 0.99, inner: tuple[torch.dtype, ...] | None = None) -> None:
        if not 0.0 < coupling <= 1.0:
            raise ValueError(f"coupling must lie in (0, 1]; got {coupling!r}")
        if not base.carry_is_slope:
            raise ValueError(f"a reversible method needs a one-step method as its base; {base.name!r} carries a state")
        self.base, self.coupling = base, float(coupling)
        self.name, self.order, self.error_order = f"reversible {base.name}", base.order, base.error_order
        self.stages, self.inner = 2 * base.stages, inner

    def __repr__(self) -> str:
        return f"ReversibleMethod({self.base.name}, coupling={self.coupling})"

    def init(self, f: Field, t: Tensor, y: Leaves) -> Leaves:
        return y

    def step(self, f: Field, t0: Tensor, t1: Tensor, y: Leaves, carry: Leaves) -> Step:
        inner = self.base.step(f, t0, t1, self.narrowed(carry), ())
        y1 = self.joined(y, carry, self.widened(carry, inner.y))
        back = self.widened(y1, self.base.advance(f, t1, t0, self.narrowed(y1)))
        z1 = tuple(z + (b - k) for z, b, k in zip(carry, y1, back, strict=True))
        return Step(y1, z1, inner.error, packed(carry, inner))

    def polynomial(self, f: Field, t0: Tensor, t1: Tensor, y: Leaves, step: Step) -> Coefficients:
        """That of the base method from z, and the offset of y from z, which changes by the factor l over the step."""
        z, inner = unpacked(step)
        first, *rest = self.base.polynomial(f, t0, t1, self.narrowed(z), inner)
        less = 1.0 - self.coupling
        return (tuple(c - less * (a - b) for c, a, b in zip(first, y, z, strict=True)), *rest)

    def narrowed(self, x: Leaves) -> Leaves:
        """What the base method starts from."""
        return x if self.inner is None else tuple(a.to(d) for a, d in zip(x, self.inner, strict=True))

    def widened(self, x: Leaves, moved: Leaves) -> Leaves:
        """x and the change that the base method made to its narrowed copy."""
        if self.inner is None:
            return moved
        return tuple(a + (b - a.to(b.dtype)) for a, b in zip(x, moved, strict=True))

    def joined(self, y: Leaves, z: Leaves, inner: Leaves) -> Leaves:
        """y1, where `inner` = z + Psi_h(t0, z)."""
        return tuple(k + self.coupling * (a - b) for a, b, k in zip(y, z, inner, strict=True))

    def parted(self, y1: Leaves, z: Leaves, inner: Leaves) -> Leaves:
        """y: the inverse of `joined`."""
        return tuple(b + (a - k) / self.coupling for a, b, k in zip(y1, z, inner, strict=True))


def packed(z: Leaves, inner: Step) -> tuple[Leaves, ...]:
    """What the dense output is made of, as `Step.stages`."""
    return (z, inner.y, inner.carry, *inner.stages)


def unpacked(step: Step) -> tuple[Leaves, Step]:
    z, y, carry, *stages = step.stages
    return z, Step(y, carry, None, tuple(stages))
