"""The field of the continuous adjoint: the state and its cotangent, together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..core.capture import graph_marker
from ..core.field import VectorField
from ..core.leaves import Leaves


class AdjointField:
    """d/dt (y, a) = (f(t, y), -(df/dy)^T a). Chen et al. 2018, eq. (4). Leaves: y's, then a's."""

    def __init__(self, f: VectorField, args: Leaves, captured: Leaves) -> None:
        self.f, self.args = f.with_args(args), args
        self.fixed = (*args, *captured)
        self.captured = None

    @property
    def calls(self) -> int:
        return self.f.calls

    def __call__(self, t: Tensor, state: Leaves, nudge: Tensor | None = None) -> Leaves:
        n = len(state) // 2
        with torch.enable_grad():
            y = tuple(x.detach().requires_grad_() for x in state[:n])
            slope = self.f(t.detach(), y, nudge)
            pulled = self._grad(slope, y, state[n:])
        back = tuple(torch.zeros_like(x) if g is None else -g for g, x in zip(pulled, y, strict=True))
        return (*(k.detach() for k in slope), *back)

    def towards_fixed(self, t: Tensor, y: Leaves, a: Leaves) -> Sequence[Tensor | None]:
        """(df/dtheta)^T a, summed over samples, for the args and the captured tensors."""
        with torch.enable_grad():
            marker = graph_marker()
            y = tuple(x.detach().requires_grad_() for x in y)
            t = t.detach()
            slope = self.f(t, y)
            self.f.see(slope, t, y, marker)
            return self._grad(slope, self.fixed, a)

    @staticmethod
    def _grad(slope: Leaves, inputs: Sequence[Tensor], cotangents: Leaves) -> Sequence[Tensor | None]:
        pairs = [(k, c) for k, c in zip(slope, cotangents, strict=True) if k.requires_grad]
        if not pairs or not inputs:
            return [None] * len(inputs)
        outs, bars = zip(*pairs, strict=True)
        return torch.autograd.grad(outs, tuple(inputs), bars, allow_unused=True)
