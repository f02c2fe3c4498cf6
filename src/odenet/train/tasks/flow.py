"""The task `flow`: the density of a table, of digits or of a toy, by a continuous normalizing flow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from typer import Option

from ...nn import CNF, FlowMatching, MLPField
from ..flows import flow_model
from ..flows.density_data import load_density
from ..flows.flow_report import chosen, independent, report
from ..flows.published_files import PUBLISHED
from ..flows.tables import read_table
from ..flows.toy_densities import toy_names
from ..task import History, Settings, Task
from ..user_error import UserError, first_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torchmetrics import Metric

_DATA = f"{', '.join(toy_names())}; digits; a FILE .csv, .npy, .npz or .parquet; magic; {', '.join(PUBLISHED)}"
_ONLY = {"cnf": ("trace", "kinetic", "jacobian"), "matching": ("coupling", "path", "sigma")}
_VALIDATED = 2000  # rows of validation that an epoch ends with


@dataclass(frozen=True)
class FlowSettings(Settings):
    """The defaults are those of a CNF on a toy; others: `Flow.defaults`."""

    epochs: Annotated[int, Option(min=1, help="Most passes over the data; 20 without progress end a run")] = 40
    batch_size: Annotated[int, Option(min=1, help="Samples a training step, of all processes together")] = 256
    lr: Annotated[float, Option(min=1e-8, max=1e12, help="Highest learning rate of the cycle")] = 1e-2
    tolerance: Annotated[float, Option(min=1e-14, max=1.0, help="Of the solves that train a cnf; others take 1e-5")] = (
        1e-2
    )
    data: Annotated[str, Option(help=_DATA)] = "moons"
    data_dir: Annotated[str, Option(help="Folder with the files of a published set")] = ""
    model: Annotated[str, Option(help="cnf (maximum likelihood) or matching (flow matching, no solves)")] = "cnf"
    hidden: Annotated[int, Option(min=1, help="Width of the field's layers")] = 64
    depth: Annotated[int, Option(min=1, max=100, help="Hidden layers of the field")] = 3
    trace: Annotated[str, Option(help="Of a cnf's Jacobian, in training: exact, hutchinson, hutch++")] = "exact"
    kinetic: Annotated[float, Option(min=0.0, max=1e6, help="Weight of a cnf's kinetic energy in the loss")] = 0.0
    jacobian: Annotated[float, Option(min=0.0, max=1e6, help="Weight of a cnf's Jacobian norm in the loss")] = 0.0
    coupling: Annotated[str, Option(help="Of noise and data, matching: independent, ot, sinkhorn, bridge")] = "ot"
    path: Annotated[str, Option(help="From noise to data, matching: cond_ot, vp, cosine, ...")] = "cond_ot"
    sigma: Annotated[float, Option(min=0.0, max=1e6, help="Deviation of noise on the path, matching")] = 0.0
    baselines: Annotated[
        str, Option(help="Models to compare with: all, none, or some of gaussian,kde,planar,coupling,spline")
    ] = "all"


class Flow(Task):
    """Learn a density with a continuous normalizing flow, by maximum likelihood or by flow matching.

    Prints test likelihoods beside those of other models on the same rows, and writes them as comparison.md, .csv and
    .json; in two dimensions also flow.gif. Then: odenet sample RUN, odenet predict RUN FILE. digits and tables have
    other defaults than toys, and so has matching; settings.json says which.

    A minute on two CPU cores, and half of one for the other models; --quick: 20 seconds.
    """

    Settings = FlowSettings
    QUICK: ClassVar = {"epochs": 2, "batch_size": 128, "hidden": 16, "depth": 2}
    MONITOR = "val_nll"

    def __init__(self, settings: FlowSettings) -> None:
        super().__init__(settings)
        s = settings
        if s.model not in _ONLY:
            raise UserError(f"--model {s.model!r} is unknown. Known: {', '.join(_ONLY)}")
        other = "matching" if s.model == "cnf" else "cnf"
        for name in _ONLY[other]:
            if getattr(s, name) != getattr(FlowSettings, name):
                raise UserError(f"--{name} is for --model {other} alone: leave it out")
        chosen(s.baselines)
        self.density = load_density(s.data, s.data_dir, s.seed, s.quick)
        independent(self.density, s.data)
        self.info = flow_model.info_of(self.density)
        try:
            self.build(s, self.info)
        except (TypeError, ValueError) as error:
            raise UserError(f"--{first_line(error).replace('sigma=', '--sigma ')}") from None
        order = torch.randperm(len(self.density.splits["val"]), generator=torch.Generator().manual_seed(s.seed))
        self.val = self.density.samples("val")[order[:_VALIDATED]]
        self.test = self.density.samples("test")

    @classmethod
    def defaults(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        data, matching = given.get("data", FlowSettings.data), given.get("model") == "matching"
        if data == "digits":  # 64 columns, 1437 rows
            return {"hidden": 256, "depth": 2, "batch_size": 64, "lr": 5e-3, "epochs": 200 if matching else 80}
        of_data = {} if data in toy_names() else {"lr": 5e-3}
        if data in PUBLISHED:
            of_data |= {"epochs": 10, "batch_size": 1000, "hidden": 128}
        # a step without a solve takes a tenth of the time, but there is more noise in it
        return of_data | ({"hidden": 128, "epochs": 120, "lr": 5e-3} if matching and data not in PUBLISHED else {})

    def data(self, split: str, epoch: int) -> TensorDataset:
        if split == "train":
            return TensorDataset(self.density.samples("train", epoch))
        return TensorDataset(self.val if split == "val" else self.test)

    @staticmethod
    def build(settings: FlowSettings, info: Mapping[str, Any]) -> nn.Module:
        s, dim = settings, len(info["columns"])
        hidden = (s.hidden,) * s.depth
        path: Any = s.path
        coupling: Any = s.coupling
        trace: Any = s.trace
        method: Any = s.method
        if s.model == "matching":
            return FlowMatching(MLPField(dim, hidden, "silu"), path, coupling, s.sigma, event_shape=(dim,))
        return CNF(
            MLPField(dim, hidden, "tanh"),
            trace=trace,
            regularisers={name: w for name, w in (("kinetic", s.kinetic), ("jacobian", s.jacobian)) if w},
            event_shape=(dim,),
            rtol=s.tolerance,
            atol=s.tolerance,
            method=method,
            per_sample=s.per_sample,
        )

    def metrics(self) -> dict[str, Metric]:
        from torchmetrics import MeanMetric

        discrete = {"bits_per_dim": MeanMetric()} if self.density.quanta.all() else {}
        return {"nll": MeanMetric(), **discrete}

    def loss(self, net: nn.Module, batch: Sequence[Tensor], metrics: Mapping[str, Metric]) -> Tensor:
        """Of a cnf: nats of z, and in training the regularisers. Of matching: the squared error of the velocity.

        Validation draws the same noise for each batch of each epoch, and takes the exact trace.
        """
        (z,) = batch
        if isinstance(net, FlowMatching):
            if net.training:
                return net.loss(z)  # a likelihood would take many times as long as a step
            generator = torch.Generator(z.device).manual_seed(self.settings.seed)
            loss, log_prob = net.loss(z, generator=generator), flow_model.log_prob(net, z)
        elif net.training:
            assert isinstance(net, CNF)
            log_prob, penalties = net.log_prob_and_penalties(z)
            loss = sum((w * penalties[n].mean() for n, (_, w) in net.regularisers.items()), -log_prob.mean())
        else:
            log_prob = flow_model.log_prob(net, z)
            loss = -log_prob.mean()
        given = log_prob.detach()
        metrics["nll"].update(-self.density.nats(given, z))
        if "bits_per_dim" in metrics:
            metrics["bits_per_dim"].update(self.density.bits_per_dim(given, z))
        return loss

    def figures(self, net: nn.Module, history: History) -> dict[str, Figure]:
        from ..flows.flow_figures import flow_figures

        return flow_figures(net, self.info, self.density, self.settings.quick)

    def report(self, net: nn.Module, folder: Path, seconds: float | None) -> tuple[list[dict[str, Any]], list[Path]]:
        from ..flows.flow_figures import write_animation

        table, files = report(net, self.settings, self.density, self.val, folder, seconds)
        if self.density.dim == 2:
            files.append(write_animation(net, self.info, self.density, folder / "flow.gif", self.settings.quick))
        return table, files

    @staticmethod
    def in_units(net: nn.Module, info: Mapping[str, Any]) -> nn.Module:
        return flow_model.FlowOfData(net, info)

    @staticmethod
    def example(info: Mapping[str, Any]) -> Tensor:
        raise UserError("a flow has no export: take odenet.train.load, odenet sample or odenet predict")

    @staticmethod
    def sample(
        net: nn.Module, info: Mapping[str, Any], n: int, method: str, steps: int | None
    ) -> tuple[list[str], Tensor]:
        return info["columns"], flow_model.samples(net, info, n, method, steps)

    @staticmethod
    def predict(net: nn.Module, info: Mapping[str, Any], files: Sequence[Path]) -> list[dict[str, Any]]:
        """The log-density of each row, in nats, in the units of the data: low where a row is unusual."""
        rows: list[dict[str, Any]] = []
        for file in files:
            table = read_table(file, to_train=False).of(file, info["columns"])
            rows += [
                {"file": str(file), "row": i, "nats": value}
                for i, value in enumerate(flow_model.nats(net, info, table).tolist(), 1)
            ]
        return rows
