"""The task `series`: classes, numbers, missing values or the future of series at irregular times."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from torch import Tensor, nn
from typer import Option

from ...series.assembly import DUPLICATES
from ..processes import first_process
from ..series.archive import ARCHIVE
from ..series.model_table import build_predictor, check_model, known_models
from ..series.predictors import ValuePredictor, scales_of, with_channels_checked
from ..series.series_data import LABELLED, TIMED, load_series, summary
from ..series.series_metrics import SCALED, new_metrics, update_beyond, update_label_metrics, update_value_metrics
from ..series.series_predictions import predict_files
from ..series.series_samples import SeriesSamples, check_targets, given_of, samples, unpacked
from ..series.series_table import layout_of
from ..task import History, Settings, Task
from ..user_error import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torchmetrics import Metric

_DATA = f"spirals, hopper, {', '.join(ARCHIVE)}, FILE.csv, FILE.parquet or FILE.ts"
_TABLE = "Column of a table"


@dataclass(frozen=True)
class SeriesSettings(Settings):
    """The defaults are those of spirals; others: `SeriesTask.defaults`."""

    tolerance: Annotated[
        float, Option(min=0.0, max=1.0, help="Of the model's solver, for --method; 0: the model's own even steps")
    ] = 0.0
    data: Annotated[str, Option(help=_DATA)] = "spirals"
    data_dir: Annotated[str, Option(help="Folder of the .ts files of the archive, or to keep hopper in")] = ""
    task: Annotated[str, Option(help=f"{', '.join((*LABELLED, *TIMED))} (default with labels: classify)")] = (
        "interpolate"
    )
    model: Annotated[str, Option(help=", ".join(known_models()))] = "ode-rnn"
    hidden: Annotated[int, Option(min=1, help="Size of the model's state, or width of its layers")] = 32
    latent: Annotated[int, Option(min=1, help="Size of the latent state of latent-ode")] = 8
    points: Annotated[int, Option(min=1, max=100, help="Observed points of each spiral, of 100")] = 50
    count: Annotated[int, Option(min=0, help="How many spirals (0: 1000) or motions of hopper (0: 10000)")] = 0
    observed: Annotated[
        float, Option(min=0.001, max=1.0, help="Share of the rows that the model is given, to interpolate or forecast")
    ] = 0.5
    dropped: Annotated[float, Option(min=0.0, max=0.99, help="Share of the rows that are taken away for good")] = 0.0
    horizon: Annotated[
        float, Option(min=0.0, help="How far to forecast: the time at each series' end; 0: its second half")
    ] = 0.0
    id: Annotated[str, Option(help=f"{_TABLE}: which series a row is of")] = "id"
    time: Annotated[str, Option(help=f"{_TABLE}: times, as numbers")] = "time"
    channel: Annotated[str, Option(help=f"{_TABLE}: names of the channels, where each row is one value")] = "channel"
    value: Annotated[str, Option(help=f"{_TABLE}: values, where each row is one value")] = "value"
    channels: Annotated[str, Option(help="Channels of a table, with commas between (default: all)")] = ""
    static: Annotated[str, Option(help="Columns of a table with one number for each series, with commas between")] = ""
    label: Annotated[str, Option(help=f"{_TABLE}, or of --labels: the class or the number of a series")] = ""
    labels: Annotated[str, Option(help="A table of its own with the labels, by id")] = ""
    duplicates: Annotated[
        str, Option(help=f"Several values of a channel at one time of a table: {', '.join(DUPLICATES)}")
    ] = "error"


class SeriesTask(Task):
    """Learn from series at irregular times: their class, a number, values that are missing, or the future.

    Prints accuracy, AUROC and calibration error (classify), squared error (regress), or squared error, likelihood, CRPS
    and coverage of the 90 % band beside those of the last value and the mean (interpolate, forecast). Then: odenet
    predict RUN FILE. A table is long (id, time, channel, value) or wide (id, time, a column for each channel).

    spirals: four minutes on two CPU cores; --quick: 20 seconds.
    """

    Settings = SeriesSettings
    QUICK: ClassVar = {"epochs": 1, "batch_size": 32, "hidden": 8, "points": 20}
    UNITS: ClassVar = dict.fromkeys(SCALED, "scaled")

    def __init__(self, settings: SeriesSettings) -> None:
        super().__init__(settings)
        s = settings
        if s.task not in (*LABELLED, *TIMED):
            raise UserError(f"--task {s.task!r} is unknown. Known: {', '.join((*LABELLED, *TIMED))}")
        if s.duplicates not in DUPLICATES:
            raise UserError(f"--duplicates {s.duplicates!r} is unknown. Known: {', '.join(DUPLICATES)}")
        check_model(s)
        self._check_options(s)
        self.series = load_series(s)
        check_targets(self.series, s)
        trained = self.series.splits["train"]
        own, labels = self.series.series, self.series.labels
        self.info = {
            "data": s.data,
            "classes": list(self.series.classes) if s.task == "classify" else [],
            "channels": list(own.channels or map(str, range(own.num_channels))),
            "layout": asdict(layout_of(s)),
            "scales": scales_of(own[trained]),
        }
        if s.task in TIMED:
            self.info |= {"last_time": float(own[trained].t.max()), "ahead": self._ahead()}
        if s.task == "regress":
            assert labels is not None
            std = float(labels[trained].std(correction=0))
            self.info["target"] = [float(labels[trained].mean()), std or 1.0]
        if first_process():
            print(f"odenet: {summary(self.series, s)}", file=sys.stderr)

    def _ahead(self) -> float:
        """How far behind the last row that is given a forecast is trained; 0 where nothing is forecast."""
        if self.settings.task != "forecast":
            return 0.0
        batch = self.data("train", 0).tensors
        given, target = given_of(batch), unpacked(batch, "target")
        assert target is not None
        return float((target.t[:, -1] - given.t[:, -1])[target.length > 0].max())

    @staticmethod
    def _check_options(s: SeriesSettings) -> None:
        """Refuse options that would change nothing."""
        table = Path(s.data).suffix not in ("", ".ts")
        columns = ("id", "time", "channel", "value", "channels", "static", "label", "labels", "duplicates")
        for names, where, of in (
            (columns, table, "a table"),
            (("points",), s.data == "spirals", "--data spirals"),
            (("count",), s.data in ("spirals", "hopper"), "--data spirals or hopper"),
            (("data_dir",), s.data in ("hopper", *ARCHIVE), "--data hopper and sets of the archive"),
            (("latent",), s.model == "latent-ode", "--model latent-ode"),
            (("horizon",), s.task == "forecast", "--task forecast"),
            (("observed",), s.task in TIMED, "--task interpolate or forecast"),
        ):
            for name in names:
                usual = {SeriesTask.defaults(asdict(s)).get(name), getattr(SeriesSettings, name)}
                if s.quick:
                    usual.add(SeriesTask.QUICK.get(name))
                if not where and getattr(s, name) not in usual:
                    raise UserError(f"--{name.replace('_', '-')} is for {of}: leave it out")

    @classmethod
    def defaults(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        data, task = given.get("data", SeriesSettings.data), given.get("task", SeriesSettings.task)
        labelled = data in ARCHIVE or given.get("label") or given.get("labels")
        of_task = {"observed": 1.0} if task == "forecast" else {}
        of_data = {} if data in ("spirals", "hopper") else {"batch_size": 16 if data in ARCHIVE else 32, "epochs": 60}
        return of_task | of_data | ({"task": "classify"} if labelled else {})

    def data(self, split: str, epoch: int) -> SeriesSamples:
        return samples(self.series, split, self.settings, epoch)

    @staticmethod
    def build(settings: SeriesSettings, info: Mapping[str, Any]) -> nn.Module:
        try:
            return build_predictor(settings, info)
        except ValueError as error:
            raise UserError(f"--model {settings.model}: {error}") from None

    @staticmethod
    def in_units(net: nn.Module, info: Mapping[str, Any]) -> nn.Module:
        return with_channels_checked(net, info["channels"])

    def metrics(self) -> dict[str, Metric]:
        return new_metrics(self.settings.task, len(self.series.classes), self.series.truth is not None)

    def loss(self, net: nn.Module, batch: Mapping[str, Tensor], metrics: Mapping[str, Metric]) -> Tensor:
        """Cross-entropy, squared error in deviations of the targets, or what the model is trained by at the targets."""
        given, target = given_of(batch), unpacked(batch, "target")
        if target is None:
            output, label = net(given), batch["label"]
            update_label_metrics(self.settings.task, metrics, output.detach(), label)
            return net.loss(output, label)  # type: ignore[operator]
        assert isinstance(net, ValuePredictor)
        loss, forecast = net.loss(given, target)
        if forecast is not None:
            update_value_metrics(metrics, net.normalizer, forecast, target)
        update_beyond(metrics, net, given, unpacked(batch, "beyond"))
        return loss

    def figures(self, net: nn.Module, history: History) -> dict[str, Figure]:
        from ..series.series_figures import series_figures

        return series_figures(net, self.settings, self.info, self.series)

    def report(self, net: nn.Module, folder: Path, seconds: float | None) -> tuple[list[dict[str, Any]], list[Path]]:
        from ..series.series_report import report

        return report(net, self.settings, self.info, self.series, folder)

    @staticmethod
    def example(info: Mapping[str, Any]) -> Tensor:
        raise UserError("a model of series has no export: its input is no single tensor; take odenet.train.load")

    @staticmethod
    def predict(net: nn.Module, info: Mapping[str, Any], files: Sequence[Path]) -> list[dict[str, Any]]:
        """The class and its probability, the number, or mean and deviation at the times of the file, by series."""
        return predict_files(net, info, files, None)

    @staticmethod
    def predict_at(
        net: nn.Module, info: Mapping[str, Any], files: Sequence[Path], times: Sequence[float]
    ) -> list[dict[str, Any]]:
        """Mean and deviation of each channel at these times, by series."""
        return predict_files(net, info, files, torch.tensor(times, dtype=torch.float64))
