"""The field of the continuous adjoint: the cotangent a, da/dt = -(df/dy)^T a, with or along the state."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import Tensor

from ..core.capture import graph_marker
from ..core.leaves import Leaves, as_graph_inputs
from ..core.vector_field import VectorField


@final
class AdjointField:
    """d/dt (y, a) = (f(t, y), -(df/dy)^T a): the state is solved again. Chen et al. 2018, eq. (4).

    path: a given y(t), which takes the times, and which samples they are of where these are not all: the field is then
    that of a alone. Called and counted like a VectorField; `fixed` are the args and captured tensors that want a
    gradient.
    """

    checked = True
    captured = None
    random = False
    save = None
    parts: list[Sequence[Tensor | None]] | None = None
    """A list collects (df/dtheta)^T a of each evaluation, for the args and the captured tensors."""

    def __init__(
        self, f: VectorField, captured: Leaves, path: Callable[[Tensor, Tensor | None], Leaves] | None = None
    ) -> None:
        args = f.differentiable_args
        self.f, self.path = f.with_args(args), path
        self.others, self.fixed = captured, (*args, *captured)
        self.lanes: Tensor | None = None

    @property
    def calls(self) -> int:
        return self.f.calls

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        return self.f.dtypes

    def pack(self, leaves: Leaves) -> Leaves:
        """What callbacks see of the backward solve's state."""
        return leaves

    def subset(self, rows: Tensor) -> AdjointField | None:
        """The field of some samples; None where f does not work on a part of the batch."""
        f = self.f.subset(rows)
        if f is None:
            return None
        other = copy.copy(self)
        other.f, other.fixed = f, (*f.differentiable_args, *self.others)
        other.lanes = rows if self.lanes is None else self.lanes[rows]
        return other

    def __call__(self, t: Tensor, state: Leaves, side: Tensor | None = None) -> Leaves:
        if self.path is not None:
            return self.slopes(t, self.path(t, self.lanes), state, side)[1]
        slope, back = self.slopes(t, *self.pair(t, state), side)
        return (*slope, *back)

    def pair(self, t: Tensor, state: Leaves) -> tuple[Leaves, Leaves]:
        """y and a at t, where the backward solve's state is `state`."""
        if self.path is not None:
            return self.path(t, self.lanes), state
        n = len(state) // 2
        return state[:n], state[n:]

    def state(self, y: Leaves, a: Leaves) -> Leaves:
        """What the backward solve starts from."""
        return (*y, *a) if self.path is None else a

    def slopes(self, t: Tensor, y: Leaves, a: Leaves, side: Tensor | None) -> tuple[Leaves, Leaves]:
        """f(t, y) and -(df/dy)^T a; attached to y and a in grad mode, where an implicit step wants their Jacobian."""
        attached = torch.is_grad_enabled()
        with torch.enable_grad():
            if not attached:
                t, y = t.detach(), as_graph_inputs(y)
            y = tuple(x if x.requires_grad else x.detach().requires_grad_() for x in y)
            marker = 0 if self.parts is None else graph_marker()
            slope = self.f(t, y, side)
            if self.parts is None:
                pulled = self.pulled(slope, y, a, attached)
            else:
                self.f.collect_captured(slope, t, y, marker)
                pulled = self.pulled(slope, (*y, *self.fixed), a, attached)
                self.parts.append(pulled[len(y) :])
        back = tuple(torch.zeros_like(x) if g is None else -g for g, x in zip(pulled, y, strict=False))
        return (slope if attached else tuple(k.detach() for k in slope)), back

    def towards_fixed(self, t: Tensor, y: Leaves, a: Leaves) -> Sequence[Tensor | None]:
        """(df/dtheta)^T a, summed over samples, for the args and the captured tensors."""
        with torch.enable_grad():
            marker = graph_marker()
            y = as_graph_inputs(y)
            t = t.detach()
            slope = self.f(t, y)
            self.f.collect_captured(slope, t, y, marker)
            return self.pulled(slope, self.fixed, a)

    def pulled(
        self,
        values: Leaves,
        inputs: Sequence[Tensor],
        cotangents: Sequence[Tensor | None],
        create_graph: bool = False,
    ) -> Sequence[Tensor | None]:
        """Cotangents of `inputs` from those of what f made."""
        pairs = [(k, c) for k, c in zip(values, cotangents, strict=True) if c is not None and k.requires_grad]
        if not pairs or not inputs:
            return [None] * len(inputs)
        outs, bars = zip(*pairs, strict=True)
        return self.f.vjp(outs, tuple(inputs), bars, create_graph)
