"""Problem: everything that stays the same during a solve."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..control.controller import Controller
from ..control.stop_times import StopRule, StopTimes
from ..core.leaves import Leaves, constants
from ..core.norms import Tolerance, positive_atol
from ..core.segment_ends import SegmentEnds
from ..core.vector_field import VectorField
from ..methods.method import Method
from .batch_index import BatchIndex


@dataclass(frozen=True)
class Problem:
    """One initial value problem, or B independent ones with `batched`.

    y0: leaves in working precision; with `batched` their first axis is the batch. ts: output times, (T,) or (B, T), in
    the engine's time dtype. stops: the times that end a step. direction: +1 where time increases, else -1, () or (B,).
    rtol, atol: a number or tensor for each leaf. attempts_before: attempts that already count towards max_steps, an int
    or (B,).

    traced: operations are recorded as a graph, so no value may be read, and numbers are tensors in a joint solve too.
    on_host: numbers are Python numbers, as all samples share their steps, and values may be read.

    compact: samples that have ended may leave the batch (engine/compaction.py), once they are more than the fraction
    `compaction_threshold` of it. samples: those in the current batch; where these are not all, `ts` has the first and
    the last time alone.
    """

    f: VectorField
    y0: Leaves
    ts: Tensor
    stops: StopTimes
    direction: Tensor
    method: Method
    controller: Controller
    rtol: Tolerance
    atol: Tolerance
    batched: bool
    max_steps: int
    attempts_before: int | Tensor = 0
    traced: bool = False
    compact: bool = True
    compaction_threshold: float = 0.1
    samples: BatchIndex = None  # pyright: ignore[reportAssignmentType]  # replaced in __post_init__
    on_host: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "on_host", not self.batched and not self.traced)
        # TorchDynamo does not accept an object as the default of an argument
        if self.samples is None:  # pyright: ignore[reportUnnecessaryComparison]  # the default
            object.__setattr__(self, "samples", BatchIndex())

    @property
    def times_differentiable(self) -> bool:
        """True where the output times, or other times that end a step, require a gradient."""
        return self.ts.requires_grad or self.stops.times.requires_grad

    @staticmethod
    def build(
        f: VectorField, y0: Leaves, ts: Tensor, controller: Controller, rule: StopRule | None = None, **fields: Any
    ) -> Problem:
        """The problem with its stop times. rule: None: that of the controller. fields: the other fields."""
        direction = direction_of(ts)
        stops = (rule or StopRule.from_controller(controller)).stop_times(ts, direction)
        fields["atol"] = positive_atol(fields["atol"], y0)
        return Problem(
            f=f, y0=y0, ts=ts, stops=stops, direction=direction, controller=controller, batched=ts.ndim == 2, **fields
        )

    def with_segment_ends(self, start: Tensor | None, scale: Tensor, displacement: Leaves) -> Problem:
        """The problem of a segment between events, in which f is evaluated by one-sided limits: see `SegmentEnds`.

        start: ts[0] where the segment starts at an event, NaN in samples where it does not, () or (B,); None: no
        sample starts at an event. scale: the size of the times from which the event was computed. displacement: leaves,
        from the state at the event to one just past it.
        """
        ts = self.ts.detach()
        start = torch.full_like(ts[..., 0], torch.nan) if start is None else start
        ends = SegmentEnds(start, scale, ts[..., -1] - ts[..., 0], self.direction, displacement)
        return replace(self, f=self.f.on_segment(ends))

    def detached(self) -> Problem:
        """The same problem, attached to no graph, with a field that finds the tensors that f captures."""
        stops = replace(self.stops, times=self.stops.times.detach())
        y0 = constants(self.y0)
        return replace(self, f=self.f.detached(), y0=y0, ts=self.ts.detach(), stops=stops)

    def subset(self, rows: Tensor) -> Problem | None:
        """The problem of the samples in these rows of the current batch; None where f does not work on a subset."""
        f, count = self.f.subset(rows), len(self.direction)
        if f is None:
            return None
        stops, jumps = self.stops.times.index_select(0, rows), self.stops.jumps
        return replace(
            self,
            f=f,
            y0=tuple(y.index_select(0, rows) for y in self.y0),
            ts=torch.stack((self.ts[..., 0], self.ts[..., -1]), -1).index_select(0, rows),
            stops=replace(self.stops, times=stops, jumps=None if jumps is None else jumps.index_select(0, rows)),
            direction=self.direction.index_select(0, rows),
            rtol=[_tolerance_rows(a, y, rows) for a, y in zip(self.rtol, self.y0, strict=True)],
            atol=[_tolerance_rows(a, y, rows) for a, y in zip(self.atol, self.y0, strict=True)],
            attempts_before=self.attempts_before.index_select(0, rows)
            if isinstance(self.attempts_before, Tensor)
            else self.attempts_before,
            samples=self.samples.subset(rows, count),
        )


def direction_of(ts: Tensor) -> Tensor:
    """+1 where time increases, else -1; () or (B,)."""
    span = ts.detach()[..., -1] - ts.detach()[..., 0]
    return torch.where(span < 0, -1.0, 1.0).to(span.dtype)


def _tolerance_rows(tolerance: float | Tensor, y: Tensor, rows: Tensor) -> float | Tensor:
    """The tolerance of the samples in these rows, if it has a row for each sample."""
    if not isinstance(tolerance, Tensor) or tolerance.ndim < y.ndim or len(tolerance) != len(y):
        return tolerance
    return tolerance.index_select(0, rows)
