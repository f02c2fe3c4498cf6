"""What a solve has counted so far."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..core.scalars import Flag, Number
from ..core.status import Status
from .advance import Move
from .problem import Problem


class Tally(NamedTuple):
    """Counts of a joint solve, or of each sample: evaluations, accepted and rejected attempts, Jacobians, factors."""

    nfe: Number
    accepted: Number
    rejected: Number
    njev: Number
    nlu: Number

    @staticmethod
    def of(status: Number, calls: int) -> Tally:
        """After so many evaluations at the start. A sample that has ended there is not charged for them."""
        if not isinstance(status, Tensor):
            return Tally(calls, 0, 0, 0, 0)
        zero = torch.zeros_like(status)
        return Tally(torch.where(status == Status.SUCCESS, 0, calls), zero, zero, zero, zero)

    def after(
        self, p: Problem, move: Move, running: Flag, rejected: Flag, tried: int, seen: int, settled: int, known: bool
    ) -> Tally:
        """The counts after a move. tried, seen, settled: evaluations of the attempt, of observers, of settling.

        A sample is charged for what was evaluated for its sake: an attempt while it runs, what is seen of a step that
        it accepted, the polynomial where it asked for it. known: that was evaluated in the attempt.
        """
        accept = move.accept
        if p.on_host:
            nfe, accept = self.nfe + tried + seen + settled, move.steps * accept
        else:
            inner = move.polynomial_calls
            extra = move.search_calls + move.claim_calls
            nfe = self.nfe + running * (tried - extra - (inner if known else 0))
            if extra:
                nfe = nfe + move.sought * move.search_calls + move.claimed * move.claim_calls
            if seen or inner:
                nfe = nfe + accept * (seen - (0 if known else inner)) + move.charged * inner
            if settled:
                nfe = nfe + (accept & move.jumps) * settled
        njev, nlu = self.njev, self.nlu
        for counts, lanes in ((move.step.counts, running), (move.polynomial_counts, move.charged)):
            if counts is None:
                continue
            if p.on_host:
                njev, nlu = njev + int(counts.njev), nlu + int(counts.nlu)
            else:
                nfe = nfe + lanes * (counts.nfe - counts.within)
                njev, nlu = njev + lanes * counts.njev, nlu + lanes * counts.nlu
        return Tally(nfe, self.accepted + accept, self.rejected + rejected, njev, nlu)
