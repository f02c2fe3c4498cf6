"""A task as Lightning trains it: one module and one data module for all tasks."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.data import extract_batch_size
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Subset
from torchmetrics import MeanMetric, Metric

from .errors import UserError
from .task import Task

_EVALUATED = 256  # samples a batch without gradients


class Module(L.LightningModule):
    """AdamW and one cycle of the learning rate on the task's loss.

    record: what a checkpoint of this run says of its origin.
    """

    def __init__(self, task: Task[Any], steps: int, record: dict[str, Any]) -> None:
        super().__init__()
        torch.manual_seed(task.settings.seed)
        self.net = task.build(task.settings, task.info)
        self.task, self.steps, self.record = task, steps, record
        self.metrics = nn.ModuleDict()
        for split in ("train", "val", "test"):
            # the loss as it is, also where it is not finite
            metrics = {"loss": MeanMetric(nan_strategy="disable"), **task.metrics()}
            self.metrics.update({f"{split}_{name}": metric for name, metric in metrics.items()})

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.net.parameters(), lr=self.task.settings.lr, weight_decay=0.02)
        steps = max(self.steps, 8)  # OneCycleLR divides by zero when its first quarter has one step
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.task.settings.lr, total_steps=steps, pct_start=0.25)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cycle, "interval": "step"}}

    def on_train_epoch_start(self) -> None:
        """Random numbers follow from seed, epoch and process, so a resumed run draws those of an undisturbed one."""
        number = (self.task.settings.seed * 1009 + self.current_epoch) * 1009 + self.global_rank
        L.seed_everything(number % 2**32, verbose=False)

    def training_step(self, batch: Any, index: int) -> Tensor:
        return self._loss("train", batch) / self.trainer.world_size

    def on_after_backward(self) -> None:
        """The sum over the processes, where DistributedDataParallel leaves their mean.

        The loss is divided instead: so a process's backward solve meets the cotangents of a single process, and an
        absolute tolerance of an adjoint means the same.
        """
        for p in self.net.parameters() if self.trainer.world_size > 1 else ():
            if p.grad is not None:
                p.grad.mul_(self.trainer.world_size)

    def validation_step(self, batch: Any, index: int) -> None:
        self._loss("val", batch)

    def test_step(self, batch: Any, index: int) -> None:
        self._loss("test", batch)

    def _loss(self, split: str, batch: Any) -> Tensor:
        metrics: dict[str, Metric] = {
            name.removeprefix(f"{split}_"): metric  # type: ignore[misc]
            for name, metric in self.metrics.items()
            if name.startswith(f"{split}_")
        }
        loss = self.task.loss(self.net, batch, metrics)
        size = extract_batch_size(batch)
        metrics["loss"].update(loss.detach(), weight=size)
        logged: Any = {f"{split}_{name}": metric for name, metric in metrics.items()}
        self.log_dict(logged, on_step=False, on_epoch=True, batch_size=size, prog_bar=split != "test")
        return loss

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        ended = self.trainer.should_stop or self.current_epoch + 1 >= self.task.settings.epochs
        checkpoint["odenet"] = {"record": self.record, "ended": ended}


class Data(L.LightningDataModule):
    """Batches whose order follows from the seed and the epoch; of several processes each takes its part of a batch."""

    def __init__(self, task: Task[Any], processes: int) -> None:
        super().__init__()
        self.task, self.processes = task, processes
        size = task.settings.batch_size
        if size % processes:
            raise UserError(f"--batch-size {size} cannot be shared out evenly to {processes} processes: take a multiple")
        for split in ("train", "val", "test"):
            if len(task.data(split, 0)) < processes:  # type: ignore[arg-type]
                raise UserError(f"the {split} data are fewer than the {processes} processes: take fewer")
        self.train_size = len(task.data("train", 0))  # type: ignore[arg-type]

    @property
    def steps(self) -> int:
        """Training steps of an epoch."""
        return max(self.train_size // self.task.settings.batch_size, 1)

    def train_dataloader(self) -> DataLoader[Any]:
        epoch = self.trainer.current_epoch if self.trainer is not None else 0
        data, size = self.task.data("train", epoch), self.task.settings.batch_size
        sampler: DistributedSampler[Any] = DistributedSampler(
            data, self.processes, self._rank(), seed=self.task.settings.seed, drop_last=True
        )
        sampler.set_epoch(epoch)
        return DataLoader(data, size // self.processes, sampler=sampler, drop_last=self.train_size >= size)

    def val_dataloader(self) -> DataLoader[Any]:
        return self._in_order("val")

    def test_dataloader(self) -> DataLoader[Any]:
        return self._in_order("test")

    def _in_order(self, split: str) -> DataLoader[Any]:
        data: Dataset[Any] = self.task.data(split, 0)
        part = range(self._rank(), len(data), self.processes)  # type: ignore[arg-type]
        return DataLoader(Subset(data, part), _EVALUATED)

    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer is not None else 0
