"""f for one step, by its one-sided limits at the ends where it jumps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..core.field_protocols import Field
from ..core.leaves import Leaves
from ..core.scalars import MaskLike, logical_not
from .problem import Problem


def one_sided_field(p: Problem, time0: Tensor, time1: Tensor, jumped: MaskLike, jumps: MaskLike) -> Field:
    """f for the step from time0 to time1: its limit just after time0 where `jumped`, just before time1 where `jumps`.

    With `perturb` f is taken to jump at both ends of every step.
    """
    if p.stops.rule.perturb:
        jumped = jumps = True
    elif p.stops.jumps is None:
        return p.f

    return OneSidedField(p.f, p.direction, time0, time1, jumped, jumps)


def field_after(p: Problem, time: Tensor, jumped: MaskLike) -> Field:
    """f, at `time` by its limit just after it where `jumped`."""
    return p.f if p.stops.jumps is None else OneSidedField(p.f, p.direction, time, time, jumped, False)


def initial_carry(p: Problem, time: Tensor, y: Leaves) -> Leaves:
    """The carry at ts[0], which is `time`, of the method, by f behind a jump there."""
    start = p.ts.detach()[..., 0]
    return p.method.init(field_after(p, start, p.stops.jump_at(start)), time, y)


@dataclass(slots=True)
class OneSidedField:
    """See `one_sided_field`. field: called as field(t, y, side), with the side of a jump as -1, 0 or +1."""

    field: Any
    direction: Tensor
    time0: Tensor
    time1: Tensor
    jumped: MaskLike
    jumps: MaskLike

    def __call__(self, t: Tensor, y: Leaves) -> Leaves:
        after = (t == self.time0) & self.jumped
        before = (t == self.time1) & self.jumps & logical_not(after)
        return self.field(t, y, (after.to(t.dtype) - before.to(t.dtype)) * self.direction)

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        return self.field.dtypes

    @property
    def jacobian(self) -> Any:
        return getattr(self.field, "jacobian", None)

    def part(self, name: str) -> OneSidedField:
        return replace(self, field=self.field.part(name))
