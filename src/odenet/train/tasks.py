"""What Lightning trains."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.nn import functional as F

from ..nn import classifier
from .data import Batches, ImageData
from .processes import Part


@dataclass(frozen=True)
class Settings:
    """All that a run's result depends on."""

    data: str
    epochs: int
    batch_size: int
    channels: int
    lr: float
    rtol: float
    atol: float
    method: str
    seed: int
    quick: bool
    per_sample: bool = False

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def build(kind: str, data: ImageData, s: Settings) -> torch.nn.Module:
    """The untrained network; its weights follow from the seed."""
    torch.manual_seed(s.seed)
    return classifier(
        kind,
        data.train.images.shape[1],
        data.train.images.shape[-1],
        10,
        s.channels,
        rtol=s.rtol,
        atol=s.atol,
        method=s.method,
        per_sample=s.per_sample,
    )


def mean(count: int | Tensor) -> float:
    """Of one count for all samples, or of one for each."""
    return float(count.double().mean()) if isinstance(count, Tensor) else float(count)


class ImageModule(L.LightningDataModule):
    """Batches for each epoch, made from the seed and the epoch's number."""

    def __init__(self, data: ImageData, s: Settings) -> None:
        super().__init__()
        self.data, self.s = data, s

    def train_dataloader(self) -> Batches:
        epoch = self.trainer.current_epoch if self.trainer is not None else 0
        seed = self.s.seed * 100_003 + epoch
        return Batches(self.data.train, self.s.batch_size, seed=seed, shift=self.data.shift, part=self._part())

    def val_dataloader(self) -> Batches:
        return Batches(self.data.val, 256, part=self._part())

    def test_dataloader(self) -> Batches:
        return Batches(self.data.test, 256, part=self._part())

    def _part(self) -> Part:
        return Part() if self.trainer is None else Part(self.trainer.global_rank, self.trainer.world_size)


class Task(L.LightningModule):
    """Cross-entropy, Adam with decoupled weight decay, one cycle of the learning rate.

    Logs by epoch: train_loss, val_error (in per cent), nfe and backward_nfe (evaluations of f in the solve that an
    image was in), seconds_step; all are means over the images of all processes.
    """

    def __init__(self, net: torch.nn.Module, lr: float, steps: int) -> None:
        super().__init__()
        self.net, self.lr, self.steps = net, lr, steps
        self._stats: Any = None
        self._clock = 0.0

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=0.02)
        steps = max(self.steps, 8)  # OneCycleLR divides by zero when its first quarter has one step
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr, total_steps=steps, pct_start=0.25)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        self._clock = time.perf_counter()
        images, labels = batch
        loss = F.cross_entropy(self.net(images), labels)
        self._stats = self.net.stats
        self._log({"train_loss": loss}, len(labels))
        batches = self.trainer.train_dataloader
        assert isinstance(batches, Batches)
        return loss * batches.weight(len(labels))

    def _log(self, values: dict[str, Any], images: int, **options: Any) -> None:
        """Means over the images of all processes: Lightning averages the number of images in whole numbers."""
        images *= self.trainer.world_size
        self.log_dict(values, on_epoch=True, on_step=False, batch_size=images, sync_dist=True, **options)

    def on_train_batch_end(self, outputs: Any, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        values = {"seconds_step": time.perf_counter() - self._clock}
        if self._stats is not None:
            values |= {name: mean(self._stats[name]) for name in ("nfe", "backward_nfe")}
        self._log(values, len(batch[1]))

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        self._log_error("val_error", batch)

    def test_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        self._log_error("test_error", batch)

    def _log_error(self, name: str, batch: tuple[Tensor, Tensor]) -> None:
        images, labels = batch
        wrong = (self.net(images).argmax(1) != labels).float().mean() * 100
        self._log({name: wrong}, len(labels), prog_bar=name == "val_error")
