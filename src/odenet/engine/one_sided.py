"""f for one step, just beside the ends at which it jumps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..core.leaves import Leaves
from ..core.scalars import MaskLike, logical_not
from ..methods.method import Field
from .problem import Problem


def one_sided_field(p: Problem, time0: Tensor, time1: Tensor, jumped: MaskLike, jumps: MaskLike) -> Field:
    """f for the step from time0 to time1: just after time0 where that is a jump, just before time1 where that is.

    With `perturb` both ends of every step are taken for jumps.
    """
    if p.stops.rule.perturb:
        jumped = jumps = True
    elif p.stops.jumps is None:
        return p.f

    return OneSidedField(p.f, p.direction, time0, time1, jumped, jumps)


@dataclass(slots=True)
class OneSidedField:
    """f for a step, just after time0 where `jumped`, and just before time1 where it `jumps` there."""

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
