"""The vector field of the continuous adjoint: da/dt = -(df/dy)^T a for the cotangent a, with or without the state y."""

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

    trajectory: a known y(t, sample_index); the field is then that of a alone. sample_index: None for all samples.
    parameters: args and captured tensors that require a gradient.

    Called and counted like a VectorField.
    """

    checked = True
    captured = None
    random = False
    save = None
    collected_vjps: list[Sequence[Tensor | None]] | None = None
    """A list receives (df/dtheta)^T a of each evaluation, one cotangent per entry of `parameters`."""

    def __init__(
        self, f: VectorField, captured: Leaves, trajectory: Callable[[Tensor, Tensor | None], Leaves] | None = None
    ) -> None:
        args = f.differentiable_args
        self.f, self.trajectory = f.with_args(args), trajectory
        self.captured_tensors, self.parameters = captured, (*args, *captured)
        self.sample_index: Tensor | None = None

    @property
    def calls(self) -> int:
        return self.f.calls

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        return self.f.dtypes

    def pack(self, leaves: Leaves) -> Leaves:
        """The state that callbacks of the backward solve get."""
        return leaves

    def subset(self, rows: Tensor) -> AdjointField | None:
        """The field of some samples; None if f does not work on a subset of the batch."""
        f = self.f.subset(rows)
        if f is None:
            return None
        copied = copy.copy(self)
        copied.f, copied.parameters = f, (*f.differentiable_args, *self.captured_tensors)
        copied.sample_index = rows if self.sample_index is None else self.sample_index[rows]
        return copied

    def __call__(self, t: Tensor, state: Leaves, side: Tensor | None = None) -> Leaves:
        if self.trajectory is not None:
            return self.derivatives(t, self.trajectory(t, self.sample_index), state, side)[1]
        slope, a_slope = self.derivatives(t, *self.split_state(t, state), side)
        return (*slope, *a_slope)

    def split_state(self, t: Tensor, state: Leaves) -> tuple[Leaves, Leaves]:
        """y and a at time t, from the state of the backward solve."""
        if self.trajectory is not None:
            return self.trajectory(t, self.sample_index), state
        n = len(state) // 2
        return state[:n], state[n:]

    def join_state(self, y: Leaves, a: Leaves) -> Leaves:
        """The initial state of the backward solve."""
        return (*y, *a) if self.trajectory is None else a

    def derivatives(self, t: Tensor, y: Leaves, a: Leaves, side: Tensor | None) -> tuple[Leaves, Leaves]:
        """f(t, y) and -(df/dy)^T a; in grad mode attached to y and a, as an implicit step needs their Jacobian."""
        attached = torch.is_grad_enabled()
        with torch.enable_grad():
            if not attached:
                t, y = t.detach(), as_graph_inputs(y)
            y = tuple(x if x.requires_grad else x.detach().requires_grad_() for x in y)
            marker = 0 if self.collected_vjps is None else graph_marker()
            slope = self.f(t, y, side)
            if self.collected_vjps is None:
                grads = self.vjp(slope, y, a, attached)
            else:
                self.f.collect_captured(slope, t, y, marker)
                grads = self.vjp(slope, (*y, *self.parameters), a, attached)
                self.collected_vjps.append(grads[len(y) :])
        a_slope = tuple(torch.zeros_like(x) if g is None else -g for g, x in zip(grads, y, strict=False))
        return (slope if attached else tuple(k.detach() for k in slope)), a_slope

    def parameter_vjp(self, t: Tensor, y: Leaves, a: Leaves) -> Sequence[Tensor | None]:
        """(df/dtheta)^T a for the args and captured tensors, summed over samples."""
        with torch.enable_grad():
            marker = graph_marker()
            y = as_graph_inputs(y)
            t = t.detach()
            slope = self.f(t, y)
            self.f.collect_captured(slope, t, y, marker)
            return self.vjp(slope, self.parameters, a)

    def vjp(
        self,
        values: Leaves,
        inputs: Sequence[Tensor],
        cotangents: Sequence[Tensor | None],
        create_graph: bool = False,
    ) -> Sequence[Tensor | None]:
        """The VJP of `values`, which f computed, for `inputs`; None is zero."""
        pairs = [(k, c) for k, c in zip(values, cotangents, strict=True) if c is not None and k.requires_grad]
        if not pairs or not inputs:
            return [None] * len(inputs)
        outs, out_bars = zip(*pairs, strict=True)
        return self.f.vjp(outs, tuple(inputs), out_bars, create_graph)
