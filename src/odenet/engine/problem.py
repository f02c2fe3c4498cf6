"""Problem: all that stays the same during a solve."""

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

    y0: leaves in working precision; the leading axis is the batch with `batched`. ts: output times, (T,) or (B, T), in
    the engine's time dtype. direction: lane of +1 and -1. rtol, atol: one number or tensor a leaf. spent: steps of
    max_steps that were attempted before, (B,) per sample. traced: operations are being recorded, and no value may be
    looked at: lanes are tensors, of a joint solve too.

    on_host: lanes are Python numbers, as one sequence of steps is for all, and values may be looked at.

    compact: samples that have ended may leave the batch (engine/compaction.py), once they are more than the part
    `spare` of it. samples: those at hand; where they are not all, `ts` has the first and the last time alone.
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
    samples: BatchIndex = field(default=None)  # pyright: ignore[reportAssignmentType]  # all, after __post_init__
    on_host: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "on_host", not self.batched and not self.traced)
        if self.samples is None:  # TorchDynamo takes no object that is the default of an argument
            object.__setattr__(self, "samples", BatchIndex())

    @property
    def times_differentiable(self) -> bool:
        """Whether a gradient is asked for with respect to the output times, or to other times that end a step."""
        return self.ts.requires_grad or self.stops.times.requires_grad

    @staticmethod
    def build(
        f: VectorField, y0: Leaves, ts: Tensor, controller: Controller, rule: StopRule | None = None, **rest: Any
    ) -> Problem:
        """rule: None: as the controller was told."""
        direction = direction_of(ts)
        stops = (rule or StopRule.from_controller(controller)).stop_times(ts, direction)
        rest["atol"] = positive_atol(rest["atol"], y0)
        return Problem(
            f=f, y0=y0, ts=ts, stops=stops, direction=direction, controller=controller, batched=ts.ndim == 2, **rest
        )

    def with_segment_ends(self, start: Tensor | None, scale: Tensor, onwards: Leaves) -> Problem:
        """The same problem between events, where f is seen from within: see `SegmentEnds`.

        start: ts[0] where an event was there, a lane; None: nowhere. scale: the size of the times that led there.
        """
        ts = self.ts.detach()
        start = torch.full_like(ts[..., 0], torch.nan) if start is None else start
        edges = SegmentEnds(start, scale, ts[..., -1] - ts[..., 0], self.direction, onwards)
        return replace(self, f=self.f.on_segment(edges))

    def detached(self) -> Problem:
        """The same problem with nothing attached to a graph, and a field that finds what it captures."""
        stops = replace(self.stops, times=self.stops.times.detach())
        y0 = constants(self.y0)
        return replace(self, f=self.f.detached(), y0=y0, ts=self.ts.detach(), stops=stops)

    def subset(self, rows: Tensor) -> Problem | None:
        """The problem of some of the samples at hand; None where f cannot do without the others."""
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
            rtol=[_own(a, y, rows) for a, y in zip(self.rtol, self.y0, strict=True)],
            atol=[_own(a, y, rows) for a, y in zip(self.atol, self.y0, strict=True)],
            attempts_before=self.attempts_before.index_select(0, rows)
            if isinstance(self.attempts_before, Tensor)
            else self.attempts_before,
            samples=self.samples.subset(rows, count),
        )


def direction_of(ts: Tensor) -> Tensor:
    """+1 where times increase, else -1; a lane."""
    span = ts.detach()[..., -1] - ts.detach()[..., 0]
    return torch.where(span < 0, -1.0, 1.0).to(span.dtype)


def _own(tolerance: float | Tensor, y: Tensor, rows: Tensor) -> float | Tensor:
    """The tolerance of some samples, where it has a row for each of them."""
    if not isinstance(tolerance, Tensor) or tolerance.ndim < y.ndim or len(tolerance) != len(y):
        return tolerance
    return tolerance.index_select(0, rows)
