"""The solution at the output times, recorded step by step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from ..core.dense import Coefficients
from ..core.leaves import Leaves, differentiable, expand_to
from ..core.scalars import any_true
from .observer import Observer
from .output_rule import outputs_within
from .problem import Problem
from .step_attempt import StepAttempt

OutputRows = slice | tuple[Tensor, Tensor]
"""Which outputs: ts[rows], or ts[i, j] per sample."""


@dataclass(slots=True)
class OutputIndex:
    """The outputs within a step: ts[rows]. sample: row in the current batch of each; None in a joint solve."""

    rows: OutputRows
    sample: Tensor | None


def outputs_at(attempt: StepAttempt, times: Tensor, sample: Tensor | None) -> Leaves:
    """The solution at n times within the step, leaves (n, ...). At the end of the step it is exactly its y.

    sample: (n,), the row in the current batch that each time belongs to; None in a joint solve.
    """
    end, start = (attempt.time1, attempt.time0) if sample is None else (attempt.time1[sample], attempt.time0[sample])
    at_end = times.detach() == end.detach()
    moving = differentiable(times)
    coefficients: Coefficients = ()
    # the polynomial first: a recorded step has it already, and cotangents are to be summed in one order
    if moving or not bool(at_end.all()):
        if sample is None:
            coefficients = attempt.polynomial()
        else:
            needed = sample if moving else sample[~at_end]
            yes = torch.tensor(True, device=sample.device)
            mask = torch.zeros(len(attempt.time0), dtype=torch.bool, device=sample.device)
            coefficients = attempt.polynomial(mask.index_put_((needed,), yes))
    if sample is None:
        y0, y1 = attempt.y, tuple(y.expand(len(times), *y.shape) for y in attempt.step.y)
    else:
        y0, y1 = tuple(y[sample] for y in attempt.y), tuple(y[sample] for y in attempt.step.y)
        coefficients = tuple(tuple(c[sample] for c in cs) for cs in coefficients)
    return outputs_within(times, start, end, y0, y1, coefficients, moving)


def saved_outputs(attempt: StepAttempt, times: Tensor, sample: Tensor | None) -> Leaves:
    """`outputs_at`, with the caller's `save` applied."""
    return apply_save(attempt.problem, times, outputs_at(attempt, times, sample), sample, attempt.time0, attempt.y)


def first_outputs(p: Problem, ts: Tensor, y0: Leaves) -> tuple[OutputRows, Leaves, int | Tensor]:
    """The outputs at ts[0], and the evaluations of f for them: one, where ts[0] is repeated and differentiable.

    An output there is y0. It is attached to its own time, which may be another than ts[0].
    """
    rows: OutputRows
    repeated: bool | Tensor
    sample: Tensor | None = None
    if p.batched:
        at_start = (ts - ts[..., :1]).detach() * p.direction.unsqueeze(-1) <= 0
        sample, j = at_start.nonzero(as_tuple=True)
        rows, first, values = (sample, j), ts[sample, 0], tuple(y[sample] for y in y0)
        repeated = at_start.sum(1) > 1
    else:
        host = ts.detach().tolist()
        count = next((i for i, t in enumerate(host) if t != host[0]), len(host))
        rows, first, values = slice(0, count), ts[0], tuple(y.expand(count, *y.shape) for y in y0)
        repeated = count > 1
    evaluations: int | Tensor = 0
    if differentiable(ts) and any_true(repeated):
        slope, evaluations = p.f(ts[..., 0], y0), repeated * 1
        slope = slope if sample is None else tuple(k[sample] for k in slope)
        slope = tuple(torch.where(torch.isfinite(k), k, 0) for k in slope)  # else NaN in samples that fail at ts[0]
        late = ts[rows] - first
        values = tuple(y + k * expand_to(late, y) for y, k in zip(values, slope, strict=True))
    return rows, apply_save(p, ts[rows], values, sample, ts[..., 0], y0), evaluations


def apply_save(p: Problem, times: Tensor, values: Leaves, sample: Tensor | None, time0: Tensor, y: Leaves) -> Leaves:
    """The caller's `save` of the solution `values` at n `times`, leaves (n, ...); `values` where there is none.

    sample: (n,), the row in the current batch that each time belongs to; None in a joint solve. time0, y: time and
    state of all samples, used for those without an output.
    """
    if p.f.save is None:
        return values
    if sample is None:
        saved = [p.f.save_output(t, tuple(x[i] for x in values)) for i, t in enumerate(times)]
        return tuple(torch.stack(list(x)) for x in zip(*saved, strict=True))
    time0, y = time0.detach(), tuple(x.detach() for x in y)
    # `save` takes one time of each sample: its k-th output goes into the k-th call
    by_sample = sample.argsort(stable=True)
    k_of_output = by_sample.argsort() - torch.searchsorted(sample[by_sample], sample)
    saved: list[Leaves] = []
    indices: list[Tensor] = []
    for k in range(int(k_of_output.max()) + 1):
        index = (k_of_output == k).nonzero()[:, 0]
        rows = sample[index]
        state = tuple(a.index_copy(0, rows, x[index]) for a, x in zip(y, values, strict=True))
        saved.append(tuple(x[rows] for x in p.f.save_output(time0.index_copy(0, rows, times[index]), state)))
        indices.append(index)
    order = torch.cat(indices).argsort()
    return tuple(torch.cat(list(x))[order] for x in zip(*saved, strict=True))


class OutputBuffer:
    """Outputs in the order in which they were computed, to be assembled in the order of ts."""

    def __init__(self) -> None:
        self.chunks: list[Leaves] = []
        self.rows: list[OutputRows] = []

    def append(self, rows: OutputRows, values: Leaves) -> None:
        self.rows.append(rows)
        self.chunks.append(values)

    def assemble(self, ts: Tensor, missing: float) -> Leaves:
        """(T, ...), or (B, T, ...) per sample; `missing` at times that no chunk has."""
        last, chunks = self.rows[-1], self.chunks
        fill = len(ts) - last.stop if isinstance(last, slice) else 1  # per sample one row serves all missing outputs
        if fill:
            filler = (torch.full_like(x[:1], missing).detach() for x in chunks[0])
            chunks = [*chunks, tuple(x.expand(fill, *x.shape[1:]) for x in filler)]
        values = tuple(torch.cat(pieces) for pieces in zip(*chunks, strict=True))
        if isinstance(last, slice):
            return values
        sample, j = (torch.cat(index) for index in zip(*self.rows, strict=True))
        row = torch.full(ts.shape, len(sample), dtype=torch.int64, device=sample.device)
        row[sample, j] = torch.arange(len(sample), device=sample.device)
        return tuple(x[row] for x in values)


@final
class OutputRecorder(Observer):
    """Records the solution at every output time.

    last_outputs: the outputs within the last step observed. evaluations: of f, for the outputs at ts[0].
    """

    def __init__(self, p: Problem) -> None:
        self.p, self.every_step = p, not p.stops.rule.every_output
        self.buffer = OutputBuffer()
        self.last_outputs: OutputIndex | None = None
        rows, values, self.evaluations = first_outputs(p, p.ts, p.y0)
        self.buffer.append(rows, values)
        self.moving = differentiable(p.ts)
        if isinstance(rows, slice):
            self.times_on_host = p.ts.detach().tolist()
            self.sign = float(p.direction)
            self.cursor = int(rows.stop)
        else:  # of each sample: the index of its next output, and its time
            self.cursors = torch.bincount(rows[0], minlength=len(p.direction))
            self.next_times = self._next_times_of(torch.arange(len(p.direction), device=p.ts.device))

    def observe(self, attempt: StepAttempt) -> None:
        accept = attempt.accept
        self.last_outputs = index = (
            self._due_per_sample(attempt, accept) if isinstance(accept, Tensor) else self._due(attempt, accept)
        )
        if index is None:
            return
        rows, times = index.rows, self.p.ts[index.rows]
        if isinstance(rows, slice) and not self.moving and self.times_on_host[rows.start] == attempt.t1:
            # all these outputs are at the end of the step
            count = rows.stop - rows.start
            values = tuple([y.unsqueeze(0) if count == 1 else y.expand(count, *y.shape) for y in attempt.step.y])
        else:
            values = outputs_at(attempt, times, index.sample)
        self.buffer.append(rows, apply_save(attempt.problem, times, values, index.sample, attempt.time0, attempt.y))

    def _due(self, attempt: StepAttempt, accept: bool) -> OutputIndex | None:
        if not accept:
            return None
        first = cursor = self.cursor
        t, sign, times = attempt.t1, self.sign, self.times_on_host
        while cursor < len(times) and (times[cursor] - t) * sign <= 0:
            cursor += 1
        self.cursor = cursor
        return OutputIndex(slice(first, cursor), None) if cursor > first else None

    def _due_per_sample(self, attempt: StepAttempt, accept: Tensor) -> OutputIndex | None:
        """Tests the next output of each sample, as a test of all outputs in every step would take longer."""
        samples, end, sign = attempt.problem.samples, attempt.time1.detach(), attempt.problem.direction
        next_times = samples.take(self.next_times)
        row = (accept & ((next_times - end) * sign <= 0)).nonzero()[:, 0]
        due: list[tuple[Tensor, Tensor, Tensor]] = []
        while len(row):
            numbers = samples.sample_numbers(row)
            due.append((numbers, self.cursors[numbers], row))
            self.cursors[numbers] += 1
            next_times = self._next_times_of(numbers)
            self.next_times[numbers] = next_times
            row = row[(next_times - end[row]) * sign[row] <= 0]
        if not due:
            return None
        numbers, j, row = (torch.cat(columns) for columns in zip(*due, strict=True))
        return OutputIndex((numbers, j), row)

    def _next_times_of(self, numbers: Tensor) -> Tensor:
        """The next output time of these samples; after the last one infinitely far."""
        ts, j = self.p.ts.detach(), self.cursors[numbers]
        never = torch.inf * self.p.direction[numbers]
        return torch.where(j < ts.shape[1], ts[numbers, j.clamp(max=ts.shape[1] - 1)], never)

    def ys(self) -> Leaves:
        """(T, ...) or (B, T, ...); NaN at times that the solve did not reach."""
        return self.buffer.assemble(self.p.ts, torch.nan)
