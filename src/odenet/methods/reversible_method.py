"""Any explicit one-step method made algebraically reversible.

McCallum & Foster 2024, "Efficient, Accurate and Stable Gradients for Neural ODEs" (arXiv 2410.11648). The method
advances y and a second state z. With Psi_h(t, x) the increment of the base method from (t, x) over h,

    y1 = l y + (1 - l) z + Psi_h(t0, z),        z1 = z - Psi_-h(t1, y1),        z(t0) = y(t0).

The inverse has a closed form: z from z1 and y1, then y. The coupling l in (0, 1] pulls y and z together: for its effect
on the stability of the step and on round-off of the inverse see docs/gradients.md.
"""

from __future__ import annotations

from typing import final

from torch import Tensor

from ..core.dense import Coefficients
from ..core.leaves import Leaves, widened
from .method import Field, Method, Step, StepInput


@final
class ReversibleMethod(Method):
    """The reversible method on top of `base`, with the same order and twice its evaluations. coupling: l.

    The carry is (y, z) in double precision, as the inverse of a step multiplies round-off by 1 / l. The state is y in
    its own dtype, in which the base method steps too.
    """

    carry_is_slope = False

    def __init__(self, base: Method, coupling: float = 0.99) -> None:
        if not 0.0 < coupling <= 1.0:
            raise ValueError(f"coupling must lie in (0, 1]; got {coupling!r}")
        base = base.for_control(False)
        if not base.carry_is_slope:
            raise ValueError(f"a reversible method needs a one-step method as its base; {base.name!r} carries a state")
        self.base, self.coupling = base, float(coupling)
        self.name, self.order, self.error_order = f"reversible {base.name}", base.order, base.error_order
        self.num_stages = 2 * base.num_stages
        self.traceable = base.traceable

    def __repr__(self) -> str:
        return f"ReversibleMethod({self.base.name}, coupling={self.coupling})"

    def twice_differentiable(self) -> ReversibleMethod:
        return ReversibleMethod(self.base.twice_differentiable(), self.coupling)

    def init(self, f: Field, t: Tensor, y: Leaves) -> Leaves:
        wide = tuple(widened(x) for x in y)
        return (*wide, *wide)

    def restart(self, f: Field, t: Tensor, y: Leaves, carry: Leaves) -> Leaves:
        return carry

    def step(self, at: StepInput) -> Step:
        wide_y, z = split_carry(at.carry)
        increment, stages = self.base.increment(StepInput(at.f, at.t0, at.t1, cast_like(z, at.y)))
        wide_y1 = self.couple(wide_y, z, increment)
        y1 = cast_like(wide_y1, at.y)
        back, _ = self.base.increment(StepInput(at.f, at.t1, at.t0, y1))
        z1 = tuple(a - b for a, b in zip(z, back, strict=True))
        return Step(y1, (*wide_y1, *z1), pack_stages(z, increment, stages))

    def error(self, at: StepInput, step: Step) -> Leaves | None:
        z, base_step = unpack_stages(step, at.y)
        return self.base.error(at._replace(y=z), base_step)

    def polynomial(self, at: StepInput, step: Step) -> Coefficients:
        """The base method's polynomial from z, plus an offset that goes linearly from y - z to l (y - z)."""
        z, base_step = unpack_stages(step, at.y)
        linear, *higher = self.base.dense(at._replace(y=z), base_step)
        decay = 1.0 - self.coupling
        return (tuple(c - decay * (a - b) for c, a, b in zip(linear, at.y, z, strict=True)), *higher)

    def couple(self, y: Leaves, z: Leaves, increment: Leaves) -> Leaves:
        """y1 = l y + (1 - l) z + Psi_h(t0, z). increment: Psi_h(t0, z)."""
        return tuple((a - b).mul_(self.coupling).add_(b).add_(k) for a, b, k in zip(y, z, increment, strict=True))

    def uncouple(self, y1: Leaves, z: Leaves, increment: Leaves) -> Leaves:
        """y, the inverse of `couple`."""
        return tuple((a - k).sub_(b).div_(self.coupling).add_(b) for a, b, k in zip(y1, z, increment, strict=True))


def split_carry(carry: Leaves) -> tuple[Leaves, Leaves]:
    """y and z."""
    n = len(carry) // 2
    return carry[:n], carry[n:]


def cast_like(x: Leaves, like: Leaves) -> Leaves:
    """x in the dtypes of `like`."""
    return tuple(a.to(b.dtype) for a, b in zip(x, like, strict=True))


def pack_stages(z: Leaves, increment: Leaves, stages: tuple[Leaves, ...]) -> tuple[Leaves, ...]:
    """`Step.stages`: z, the increment, and the stages of the base method's step."""
    return (z, increment, *stages)


def unpack_stages(step: Step, like: Leaves) -> tuple[Leaves, Step]:
    """The state z before the base method's step, in the dtypes of `like`, and that step."""
    z, increment, *stages = step.stages
    z = cast_like(z, like)
    return z, Step(tuple(a + k for a, k in zip(z, increment, strict=True)), (), tuple(stages))
