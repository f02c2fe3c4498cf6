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
    """Evaluations, accepted and rejected attempts, Jacobians and factorisations; ints, or (B,) per sample."""

    nfe: int | Tensor
    accepted: int | Tensor
    rejected: int | Tensor
    njev: int | Tensor
    nlu: int | Tensor

    @staticmethod
    def initial(status: ScalarLike, calls: int) -> Counters:
        """After `calls` evaluations at the start. They are not charged to a sample that has ended there."""
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
        attempt_calls: int,
        observer_calls: int,
        restart_calls: int,
        polynomial_known: bool,
    ) -> Counters:
        """The counts after an attempt.

        A sample is charged for the evaluations that it needs: those of the attempt while it runs, those of observers
        where it accepted the step, those of the polynomial where it needs it, those of a restart where f jumps.

        attempt_calls, observer_calls, restart_calls: evaluations in the attempt, by observers, and after a jump.
        polynomial_known: the polynomial was evaluated in the attempt, so `attempt_calls` has its evaluations.
        """
        accept = attempt.accept
        if p.on_host:
            nfe, accept = self.nfe + attempt_calls + observer_calls + restart_calls, attempt.steps * accept
        else:
            polynomial_calls = attempt.polynomial_calls
            event_calls = attempt.search_calls + attempt.claim_calls
            nfe = self.nfe + running * (attempt_calls - event_calls - (polynomial_calls if polynomial_known else 0))
            if event_calls:
                nfe = nfe + attempt.searched * attempt.search_calls + attempt.claimed * attempt.claim_calls
            if observer_calls or polynomial_calls:
                observed = observer_calls - (0 if polynomial_known else polynomial_calls)
                nfe = nfe + accept * observed + attempt.charged * polynomial_calls
            if restart_calls:
                nfe = nfe + (accept & attempt.jumps) * restart_calls
        njev, nlu = self.njev, self.nlu
        for counts, samples in ((attempt.step.counts, running), (attempt.polynomial_counts, attempt.charged)):
            if counts is None:
                continue
            if p.on_host:
                njev, nlu = njev + int(counts.njev), nlu + int(counts.nlu)
            else:
                nfe = nfe + samples * (counts.nfe - counts.counted_calls)
                njev, nlu = njev + samples * counts.njev, nlu + samples * counts.nlu
        return Counters(nfe, self.accepted + accept, self.rejected + rejected, njev, nlu)
