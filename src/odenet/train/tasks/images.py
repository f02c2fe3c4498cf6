"""The task `images`: cross-entropy, and the error in per cent; training images are moved by some pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typer import Option

from ...nn import classifier
from ...nn.classifier import KINDS
from ..images.data import Samples, load, scaled
from ..images.image_files import inputs
from ..task import History, Settings, Task
from ..user_error import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torchmetrics import Metric

DATA = "digits (embedded), mnist, a FOLDER with a sub-folder of PNG or JPEG files for each class, or a FILE.npz"


@dataclass(frozen=True)
class ImageSettings(Settings):
    """mnist has other defaults: `Images.MNIST`."""

    data: Annotated[str, Option(help=DATA)] = "digits"
    data_dir: Annotated[str, Option(help="Folder with MNIST's four IDX files, or they are fetched")] = ""
    net: Annotated[str, Option(help="resnet, rknet (backpropagation) or odenet (adjoint)")] = "odenet"
    size: Annotated[int, Option(min=0, max=1024, help="Pixels a side; 0: the images' own, at most 64")] = 0
    channels: Annotated[int, Option(min=1, help="Feature maps of the block")] = 32


class Images(Task):
    """Classify images with a residual network, an RK-Net or an ODE-Net.

    digits: a minute on two CPU cores; mnist: an hour; --quick: 20 seconds.
    """

    Settings = ImageSettings
    QUICK: ClassVar = {"epochs": 1, "batch_size": 32, "channels": 8}
    MNIST: ClassVar = {"epochs": 8, "batch_size": 128, "channels": 64, "lr": 3e-3, "tolerance": 1e-3}
    MONITOR = "val_error"

    def __init__(self, settings: ImageSettings) -> None:
        super().__init__(settings)
        if settings.net not in KINDS:
            raise UserError(f"--net {settings.net!r} is unknown. Known: {', '.join(KINDS)}")
        s = settings
        self.images = load(s.data, s.data_dir, s.size, s.seed, s.quick)
        self.info = {
            "classes": self.images.classes,
            "channels": self.images.channels,
            "size": self.images.size,
            "input": "(batch, channels, size, size), float32 in [0, 1]: bytes are divided by 255",
            "output": "(batch, classes): logits, softmax of which are probabilities",
        }

    @classmethod
    def defaults(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        return cls.MNIST if given.get("data") == "mnist" else {}

    def data(self, split: str, epoch: int) -> Samples:
        shift = max(1, self.images.size // 14) if split == "train" else 0
        return Samples(*self.images.splits[split], shift, self.settings.seed * 100_003 + epoch)

    @staticmethod
    def build(settings: ImageSettings, info: Mapping[str, Any]) -> nn.Module:
        s = settings
        solve: dict[str, Any] = {
            "rtol": s.tolerance,
            "atol": s.tolerance,
            "method": s.method,
            "per_sample": s.per_sample,
        }
        return classifier(cast(Any, s.net), info["channels"], info["size"], len(info["classes"]), s.channels, **solve)

    def metrics(self) -> dict[str, Metric]:
        from torchmetrics import MeanMetric

        return {"error": MeanMetric()}

    def loss(self, net: nn.Module, batch: tuple[Tensor, Tensor], metrics: Mapping[str, Metric]) -> Tensor:
        images, labels = batch
        logits = net(images)
        metrics["error"].update(100.0 * (logits.argmax(1) != labels))
        return F.cross_entropy(logits, labels)

    def figures(self, net: nn.Module, history: History) -> dict[str, Figure]:
        from ..images.image_figures import trajectories

        return trajectories(net, self.images)

    @staticmethod
    def example(info: Mapping[str, Any]) -> Tensor:
        return torch.rand(2, info["channels"], info["size"], info["size"])

    @staticmethod
    @torch.no_grad()
    def predict(net: nn.Module, info: Mapping[str, Any], files: Sequence[Path]) -> list[dict[str, Any]]:
        device = next(net.parameters()).device
        rows = []
        for name, images in inputs(files, info["channels"], info["size"]):
            logits = torch.cat([net(scaled(part)) for part in images.to(device).split(256)])
            for i, (p, number) in enumerate(zip(*(part.tolist() for part in logits.softmax(1).max(1)), strict=True)):
                file = f"{name}[{i}]" if len(images) > 1 else name
                rows.append({"file": file, "class": info["classes"][number], "probability": p})
        return rows
