"""A task as Lightning trains it: one module and one data module for all tasks."""

from __future__ import annotations

import signal
import threading
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.data import extract_batch_size
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, Subset
from torchmetrics import MeanMetric, Metric

from .task import Task
from .user_error import UserError

_EVALUATED = 256  # samples a batch without gradients


class Module(L.LightningModule):
    """AdamW and one cycle of the learning rate on the task's loss.

    record: task, settings, info and data of the run, kept in checkpoints.
    """

    def __init__(self, task: Task, steps: int, record: dict[str, Any]) -> None:
        super().__init__()
        torch.manual_seed(task.settings.seed)
        self.net = task.build(task.settings, task.info)
        self.task, self.steps, self.record, self.started = task, steps, record, False
        self.handler = signal.getsignal(signal.SIGTERM)
        self.metrics = nn.ModuleDict()
        for split in ("train", "val", "test"):
            metrics: dict[str, Metric] = {"loss": MeanMetric(nan_strategy="disable"), **task.metrics()}
            self.metrics.update({f"{split}_{name}": metric for name, metric in metrics.items()})

    def configure_optimizers(self) -> Any:
        lr, steps = self.task.settings.lr, max(self.steps, 8)  # fewer give the cycle's first quarter one step: 1 / 0
        optimizer = torch.optim.AdamW(self.net.parameters(), lr=lr, weight_decay=0.02)
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.25)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cycle, "interval": "step"}}

    def on_train_start(self) -> None:
        self.started = True
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self.handler)  # Lightning's waits for the other processes, wherever they are

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Random numbers follow from seed, epoch and process, so a resumed run draws those of an undisturbed one.

        Not earlier: the loader draws a number as it begins, and a resumed run makes its first one at another moment.
        """
        if batch_idx:
            return
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
        metrics: Any = {name: metric for name, metric in self.metrics.items() if name.startswith(split)}
        loss = self.task.loss(
            self.net, batch, {name.removeprefix(f"{split}_"): metric for name, metric in metrics.items()}
        )
        size = extract_batch_size(batch)
        metrics[f"{split}_loss"].update(loss.detach(), weight=size)
        logged = {name: metric for name, metric in metrics.items() if metric.update_called}
        self.log_dict(logged, on_step=False, on_epoch=True, batch_size=size, prog_bar=True)
        return loss

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        ended = self.trainer.should_stop or self.current_epoch + 1 >= self.task.settings.epochs
        checkpoint["odenet"] = {"run": self.record, "ended": ended}


class Data(L.LightningDataModule):
    """Batches whose order follows from the seed and the epoch; of several processes each takes its part of a batch."""

    def __init__(self, task: Task, processes: int) -> None:
        super().__init__()
        self.task, self.processes, self.size = task, processes, task.settings.batch_size
        sizes = [len(task.data(split, 0)) for split in ("train", "val", "test")]  # type: ignore[arg-type]
        if self.size % processes or min(sizes) < processes:
            raise UserError(
                f"--batch-size {self.size} and {min(sizes)} samples cannot be shared out evenly to {processes} "
                "processes: choose a multiple, or fewer processes"
            )
        self.whole = sizes[0] >= self.size
        self.steps = max(sizes[0] // self.size, 1)

    def train_dataloader(self) -> DataLoader[Any]:
        epoch, rank = (self.trainer.current_epoch, self.trainer.global_rank) if self.trainer is not None else (0, 0)
        data, seed = self.task.data("train", epoch), self.task.settings.seed
        sampler: Any = DistributedSampler(data, self.processes, rank, seed=seed, drop_last=True)
        sampler.set_epoch(epoch)
        return DataLoader(data, self.size // self.processes, sampler=sampler, drop_last=self.whole)

    def val_dataloader(self, split: str = "val") -> DataLoader[Any]:
        data: Any = self.task.data(split, 0)
        rank = self.trainer.global_rank if self.trainer is not None else 0
        return DataLoader(Subset(data, range(rank, len(data), self.processes)), _EVALUATED)

    def test_dataloader(self) -> DataLoader[Any]:
        return self.val_dataloader("test")
