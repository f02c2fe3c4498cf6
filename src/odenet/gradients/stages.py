"""A step as its evaluations of f, each with a graph of its own: what joins them is pulled through by the method."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from ..core.leaves import Leaves, new_leaves
from ..methods.base import Field, Stage


@final
class Evaluations:
    """A field that remembers its evaluations, each recorded by autograd from leaves; what it returns is detached."""

    def __init__(self, f: Field) -> None:
        self.f = f
        self.stages: list[Stage] = []

    def __call__(self, t: Tensor, y: Leaves) -> Leaves:
        with torch.enable_grad():
            y = new_leaves(y)
            slope = self.f(t, y)
        self.stages.append((y, slope))
        return tuple(k.detach() for k in slope)
