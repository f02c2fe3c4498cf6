"""What a solve has counted so far."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..core.scalars import MaskLike, ScalarLike
from ..core.status import Status
from .problem import Problem
from .step_attempt import StepAttempt


class Counters(NamedTuple):
    """Counts of a joint solve, or of each sample: evaluations, accepted and rejected attempts, Jacobians, factors."""

    nfe: ScalarLike
    accepted: ScalarLike
    rejected: ScalarLike
    njev: ScalarLike
    nlu: ScalarLike

    @staticmethod
    def of(status: ScalarLike, calls: int) -> Counters:
        """After so many evaluations at the start. A sample that has ended there is not charged for them."""
        if not isinstance(status, Tensor):
            return Counters(calls, 0, 0, 0, 0)
        zero = torch.zeros_like(status)
        return Counters(torch.where(status == Status.SUCCESS, 0, calls), zero, zero, zero, zero)

    def after(
        self,
        p: Problem,
        attempt: StepAttempt,
        running: MaskLike,
        rejected: MaskLike,
        tried: int,
        seen: int,
        settled: int,
        known: bool,
    ) -> Counters:
        """The counts after a move. tried, seen, settled: evaluations of the attempt, of observers, of settling.

        A sample is charged for what was evaluated for its sake: an attempt while it runs, what is seen of a step that
        it accepted, the polynomial where it asked for it. known: that was evaluated in the attempt.
        """
        accept = attempt.accept
        if p.on_host:
            nfe, accept = self.nfe + tried + seen + settled, attempt.steps * accept
        else:
            inner = attempt.polynomial_calls
            extra = attempt.search_calls + attempt.claim_calls
            nfe = self.nfe + running * (tried - extra - (inner if known else 0))
            if extra:
                nfe = nfe + attempt.searched * attempt.search_calls + attempt.claimed * attempt.claim_calls
            if seen or inner:
                nfe = nfe + accept * (seen - (0 if known else inner)) + attempt.charged * inner
            if settled:
                nfe = nfe + (accept & attempt.jumps) * settled
        njev, nlu = self.njev, self.nlu
        for counts, lanes in ((attempt.step.counts, running), (attempt.polynomial_counts, attempt.charged)):
            if counts is None:
                continue
            if p.on_host:
                njev, nlu = njev + int(counts.njev), nlu + int(counts.nlu)
            else:
                nfe = nfe + lanes * (counts.nfe - counts.counted_calls)
                njev, nlu = njev + lanes * counts.njev, nlu + lanes * counts.nlu
        return Counters(nfe, self.accepted + accept, self.rejected + rejected, njev, nlu)
