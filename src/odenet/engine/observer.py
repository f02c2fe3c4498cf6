"""Observer: the loop's only hook."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from .step_attempt import StepAttempt


class Observer(ABC):
    """Sees every move of a solve, in order, rejected ones too.

    single: it has to see each step. Else it may be shown several as one, of which all but the last end at no stop.
    starts_whole: no sample leaves the batch before a step has been accepted; the first one seen has all samples.
    """

    every_step: bool = True
    whole_batch_first: ClassVar[bool] = False

    @abstractmethod
    def observe(self, attempt: StepAttempt) -> None: ...
