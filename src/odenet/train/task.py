"""What a training task is: its data, its network, its loss, and the options of its command."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from torch import Tensor, nn
from torch.utils.data import Dataset
from typer import Option

from .user_error import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torchmetrics import Metric

History = Sequence[Mapping[str, float]]
_ADAPTIVE = "Solver that chooses its steps: bosh3, tsit5, dopri5, dopri8, heun, ..."
_PER_SAMPLE = "Choose the solver's steps for each sample, not for the batch"


@dataclass(frozen=True)
class Settings:
    """All that a run's result depends on. A task adds fields of its own; each field is an option of the command."""

    epochs: Annotated[int, Option(min=1, help="Most passes over the data; 20 without progress end a run")] = 30
    batch_size: Annotated[int, Option(min=1, help="Samples a training step, of all processes together")] = 64
    lr: Annotated[float, Option(min=1e-8, max=1e12, help="Highest learning rate of the cycle")] = 5e-3
    tolerance: Annotated[
        float, Option(min=1e-14, max=1.0, help="Relative and absolute tolerance of the ODE solver")
    ] = 1e-2
    method: Annotated[str, Option(help=_ADAPTIVE)] = "bosh3"
    per_sample: Annotated[bool, Option("--per-sample", help=_PER_SAMPLE)] = False
    seed: Annotated[
        int, Option(min=0, max=2**32 - 1, help="Seed of weights, batches and random splits of the data")
    ] = 0
    quick: Annotated[bool, Option("--quick", help="A smoke run of some seconds: little data, a small net")] = False


class Task(ABC):
    """A problem to train a network on; the docstring of a subclass is the help of its command.

    A subclass reads its data in `__init__` and raises UserError where they are not usable. `info` is what the network
    and its use depend on besides the settings, in JSON's types, such as the names of the classes: it is kept with the
    run, so that `build` needs no data.
    """

    Settings: ClassVar[type[Settings]] = Settings
    QUICK: ClassVar[dict[str, Any]] = {"epochs": 1, "batch_size": 32}  # what --quick takes instead of the defaults
    UNITS: ClassVar[Mapping[str, str]] = {}  # of metrics, by name, for tables: what they are in, where that may mislead
    MONITOR: ClassVar[str] = "val_loss"  # early stopping: the metric that has to fall, so not an accuracy

    def __init__(self, settings: Any) -> None:
        self.settings = settings
        self.info: dict[str, Any] = {}

    @classmethod
    def defaults(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Settings whose default depends on those that are given."""
        return {}

    @abstractmethod
    def data(self, split: str, epoch: int) -> Dataset[Any]:
        """The samples of "train", "val" or "test"; those to train on may differ by epoch (augmentation)."""

    @staticmethod
    @abstractmethod
    def build(settings: Any, info: Mapping[str, Any]) -> nn.Module:
        """The untrained network. Called again, without the data, where a run is loaded, used and exported."""

    def metrics(self) -> dict[str, Metric]:
        """New metrics, which `loss` updates, logged by epoch as train_NAME, val_NAME and test_NAME beside the loss."""
        return {}

    @abstractmethod
    def loss(self, net: nn.Module, batch: Any, metrics: Mapping[str, Metric]) -> Tensor:
        """The mean loss of the samples of a batch; updates the metrics."""

    def figures(self, net: nn.Module, history: History) -> dict[str, Figure]:
        """Pictures of the trained network by name, beside training.png. history: the metrics of each epoch."""
        return {}

    def report(self, net: nn.Module, folder: Path, seconds: float | None) -> tuple[list[dict[str, Any]], list[Path]]:
        """A table to print at the end of a training, and further files, which it writes into the folder.

        seconds: how long the training took; None where it was resumed.
        """
        return [], []

    @staticmethod
    def in_units(net: nn.Module, info: Mapping[str, Any]) -> nn.Module:
        """What `odenet.train.load` returns: the network, in the units of its data."""
        return net

    @staticmethod
    def example(info: Mapping[str, Any]) -> Tensor:
        """Two samples of input, for `odenet export`."""
        raise UserError("this task has no export: its network's input is not described")

    @staticmethod
    def predict(net: nn.Module, info: Mapping[str, Any], files: Sequence[Path]) -> list[dict[str, Any]]:
        """The rows of the table of `odenet predict`."""
        raise UserError("this task makes no predictions from files")

    @staticmethod
    def predict_at(
        net: nn.Module, info: Mapping[str, Any], files: Sequence[Path], times: Sequence[float]
    ) -> list[dict[str, Any]]:
        """The rows of `odenet predict --times`."""
        raise UserError("--times is for runs of odenet train series: leave it out")

    @staticmethod
    def sample(
        net: nn.Module, info: Mapping[str, Any], n: int, method: str, steps: int | None
    ) -> tuple[list[str], Tensor]:
        """Names of the columns (D), and n samples (n, D), for `odenet sample`, from PyTorch's random numbers.

        method, steps: of the solver; "" and None: the task's own.
        """
        raise UserError("this run is of a task whose nets give no samples: give a run of `odenet train flow`")
