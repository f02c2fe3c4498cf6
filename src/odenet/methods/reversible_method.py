"""Any explicit one-step method made algebraically reversible.

McCallum & Foster 2024, "Efficient, Accurate and Stable Gradients for Neural ODEs" (arXiv 2410.11648): beside y a second
state z is carried, and with Psi_h(t, x) the increment of the base method from (t, x) over h,

    y1 = l y + (1 - l) z + Psi_h(t0, z),        z1 = z - Psi_-h(t1, y1),        z(t0) = y(t0),

which can be undone in closed form: z from z1 and y1, then y. The coupling l in (0, 1] draws y and z together: see
docs/gradients.md for what it does to stability forwards and to rounding backwards.
"""

from __future__ import annotations

from typing import final

from torch import Tensor

from ..core.dense import Coefficients
from ..core.leaves import Leaves, widened
from .method import Field, Method, Step, StepInput


@final
class ReversibleMethod(Method):
    """The reversible method on top of `base`, of the same order; twice its evaluations.

    The carry is (y, z), in twice the state's precision where there is one: undoing a step multiplies rounding errors by
    1 / l. The state is y in its own precision, in which the base method steps too.
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
        wide, z = split_carry(at.carry)
        rise, stages = self.base.increment(StepInput(at.f, at.t0, at.t1, cast_like(z, at.y)))
        wide1 = self.couple(wide, z, rise)
        y1 = cast_like(wide1, at.y)
        back, _ = self.base.increment(StepInput(at.f, at.t1, at.t0, y1))
        z1 = tuple(a - b for a, b in zip(z, back, strict=True))
        return Step(y1, (*wide1, *z1), pack_stages(z, rise, stages))

    def error(self, at: StepInput, step: Step) -> Leaves | None:
        z, inner = unpack_stages(step, at.y)
        return self.base.error(at._replace(y=z), inner)

    def polynomial(self, at: StepInput, step: Step) -> Coefficients:
        """That of the base method from z, and the offset of y from z, which changes by the factor l over the step."""
        z, inner = unpack_stages(step, at.y)
        first, *rest = self.base.dense(at._replace(y=z), inner)
        less = 1.0 - self.coupling
        return (tuple(c - less * (a - b) for c, a, b in zip(first, at.y, z, strict=True)), *rest)

    def couple(self, y: Leaves, z: Leaves, rise: Leaves) -> Leaves:
        """y1 = l y + (1 - l) z + Psi_h(t0, z), where `rise` is the last."""
        return tuple((a - b).mul_(self.coupling).add_(b).add_(k) for a, b, k in zip(y, z, rise, strict=True))

    def uncouple(self, y1: Leaves, z: Leaves, rise: Leaves) -> Leaves:
        """y: the inverse of `joined`."""
        return tuple((a - k).sub_(b).div_(self.coupling).add_(b) for a, b, k in zip(y1, z, rise, strict=True))


def split_carry(carry: Leaves) -> tuple[Leaves, Leaves]:
    """y and z."""
    n = len(carry) // 2
    return carry[:n], carry[n:]


def cast_like(x: Leaves, like: Leaves) -> Leaves:
    return tuple(a.to(b.dtype) for a, b in zip(x, like, strict=True))


def pack_stages(z: Leaves, rise: Leaves, stages: tuple[Leaves, ...]) -> tuple[Leaves, ...]:
    """What error estimate and dense output are made of, as `Step.stages`."""
    return (z, rise, *stages)


def unpack_stages(step: Step, like: Leaves) -> tuple[Leaves, Step]:
    """The base method's step, and what it starts from."""
    z, rise, *stages = step.stages
    z = cast_like(z, like)
    return z, Step(tuple(a + k for a, k in zip(z, rise, strict=True)), (), tuple(stages))
