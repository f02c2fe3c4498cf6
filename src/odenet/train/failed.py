"""What is said of a training that cannot go on: a solve that fails, a loss or weights that are not finite."""

from __future__ import annotations

import math

import lightning as L
import torch
from torch import nn

from ..errors import BlowUpError, MaxStepsError, NonFiniteError, SolveError, StepUnderflowError

_DIVERGED = "training diverged: lower --lr"


class DivergedError(Exception):
    """The loss or the weights are not finite."""


def _finite(net: nn.Module) -> bool:
    return all(bool(torch.isfinite(p).all()) for p in net.parameters())


def check_finite(trainer: L.Trainer, net: nn.Module) -> None:
    """Raises DivergedError after an epoch that left a loss or weights that are not finite."""
    loss = float(trainer.callback_metrics["train_loss"])
    if not math.isfinite(loss):
        raise DivergedError(f"{when(trainer)}: the loss is not finite ({loss}), {_DIVERGED}")
    if not _finite(net):
        raise DivergedError(f"{when(trainer)}: the weights are not finite any more, {_DIVERGED}")


def when(trainer: L.Trainer) -> str:
    """How far the training is."""
    return f"epoch {trainer.current_epoch + 1}, {trainer.global_step} training steps done"


def hint(error: SolveError, net: nn.Module) -> str:
    """Which option to change after a solve with this net has failed."""
    if not _finite(net):
        return f"The weights are not finite any more, {_DIVERGED}"
    if isinstance(error, (MaxStepsError, StepUnderflowError)):
        return "Raise --tolerance, or lower --lr"
    if isinstance(error, (NonFiniteError, BlowUpError)):
        return f"The weights are finite, but {_DIVERGED}"
    return "Try another --tolerance, --method or --lr"
