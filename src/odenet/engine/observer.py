"""Observer: the loop's only hook."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from .step_attempt import StepAttempt


class Observer(ABC):
    """Sees every attempt of a solve, in order, rejected ones too.

    every_step: it has to see each step. Otherwise one attempt may stand for several steps, all but the last of which
    end at no stop time. whole_batch_first: the first accepted step that it sees has all samples; until then none leaves
    the batch.
    """

    every_step: bool = True
    whole_batch_first: ClassVar[bool] = False

    @abstractmethod
    def observe(self, attempt: StepAttempt) -> None: ...
