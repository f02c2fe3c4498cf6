"""Figures of a trained model of series: what it says at times, what a class was seen by, and how sure it may be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from ...series import Series
from .gaussian_scores import BAND
from .predictors import ClassPredictor, LatentPredictor, ValuePredictor
from .series_data import LABELLED, SeriesData
from .series_metrics import BINS
from .series_report import fitted_baseline, pairs

_SHOWN, _CHANNELS, _TIMES = 4, 3, 200  # series, channels and times of a figure
_PATHS = 60  # latent paths


def series_figures(net: nn.Module, settings: Any, info: Mapping[str, Any], data: SeriesData) -> dict[str, Figure]:
    """By name: "predictions", "spirals", "latent" (latent-ode); or "attribution", and "reliability" of classes."""
    if settings.task in LABELLED:
        labels = data.labels
        assert labels is not None
        test = data.splits["test"]
        shown = test[torch.linspace(0, len(test) - 1, min(_SHOWN, len(test))).long()]  # the archive sorts by class
        figures = {"attribution": _attribution(net, info, data.series[shown].trimmed(), labels[shown])}
        if isinstance(net, ClassPredictor):
            figures["reliability"] = _reliability(net, data.series[test].trimmed(), labels[test])
        return figures
    assert isinstance(net, ValuePredictor)
    given, target, beyond = next(pairs(data, "test", settings))
    known = [part for part in (target, beyond) if part is not None]
    baseline = fitted_baseline("last-value", settings, info, data) if settings.task == "forecast" else None
    names = [_title(info, data, i) for i in data.splits["test"][:_SHOWN].tolist()]
    figures = {"predictions": _predictions(net, baseline, info, names, given, known)}
    if data.truth is not None:
        figures["spirals"] = _plane(net, info["channels"], names, given, known)
    if isinstance(net, LatentPredictor):
        labels = data.labels[data.splits["test"]] if data.labels is not None and data.classes else None
        figures["latent"] = _latent(net, given, known, labels, data.classes)
    return figures


def _title(info: Mapping[str, Any], data: SeriesData, i: int) -> str:
    """The id of a series behind the name of its column, or its number."""
    name = f"series {i}" if data.series.ids is None else f"{info['layout']['id']} {data.series.ids[i]}"
    return name if len(name) <= 32 else f"{name[:29]}..."


def _span(given: Series, known: Sequence[Series], i: int, future: bool) -> Tensor:
    """Even times from the first row of a sample in any part to the last one; future: from the last given one on."""
    times = torch.cat([part.t[i][part.rows[i]] for part in (given, *known)])
    first = given.t[i, -1] if future else times.min()
    return torch.linspace(float(first), float(times.max()), _TIMES)


@torch.no_grad()
def _predictions(
    net: ValuePredictor,
    baseline: ValuePredictor | None,
    info: Mapping[str, Any],
    titles: Sequence[str],
    given: Series,
    known: Sequence[Series],
) -> Figure:
    """Mean and band of 90 % by time; a row of axes for each channel, a column for each series.

    baseline: of a forecast, which begins at the last row that is given.
    """
    names = info["channels"]
    size, channels = min(_SHOWN, len(given)), min(_CHANNELS, len(names))
    figure = Figure(figsize=(3.1 * size + 0.6, 2.0 * channels + 1.0))
    grid = figure.subplots(channels, size, squeeze=False)
    for i in range(size):
        series, ts = given[i].trimmed(), _span(given, known, i, baseline is not None)
        mean, std = net(series, ts)
        last = None if baseline is None else baseline(series, ts).mean[0]
        for c in range(channels):
            axes, line, half = grid[c][i], mean[0, :, c], BAND * std[0, :, c]
            axes.fill_between(ts.numpy(), (line - half).numpy(), (line + half).numpy(), alpha=0.25, lw=0, label="90 %")
            axes.plot(ts.numpy(), line.numpy(), lw=1.2, label="mean")
            if last is not None:
                axes.plot(ts.numpy(), last[:, c].numpy(), "--", lw=1.0, color="0.5", label="last value")
            for part in known:
                _dots(axes, part, i, c, "to predict" if part is known[0] else "", "C1", 6)
            _dots(axes, given, i, c, "given", "black", 9)
            axes.tick_params(labelsize=7)
            if i == 0:
                axes.set_ylabel(names[c], fontsize=8)
            if c == 0:
                axes.set_title(titles[i], fontsize=8)
            if c == channels - 1:
                axes.set_xlabel(info["layout"]["time"], fontsize=8)
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=7, ncols=len(labels), loc="upper right")
    figure.suptitle(" ")  # room for the legend
    return figure


def _dots(axes: Axes, series: Series, i: int, channel: int, label: str, colour: str, size: float) -> None:
    at = series.mask[i, :, channel]
    axes.scatter(series.t[i, at].numpy(), series.x[i, at, channel].numpy(), size, color=colour, lw=0, label=label)


@torch.no_grad()
def _plane(
    net: ValuePredictor, names: Sequence[str], titles: Sequence[str], given: Series, known: Sequence[Series]
) -> Figure:
    """Spirals in the plane: the true ones, the points that were seen, and what is said of them and beyond."""
    size = min(_SHOWN, len(given))
    figure = Figure(figsize=(3.1 * size, 3.6))
    row = figure.subplots(1, size, squeeze=False)[0]
    for i, axes in enumerate(row):
        for part, name, style in zip(known, ("", " beyond"), ("-", ":"), strict=False):
            axes.plot(*part.x[i, part.rows[i]].T.numpy(), style, color="0.6", lw=1.5, label=f"true{name}")
            mean = net(given[i].trimmed(), part.t[i][part.rows[i]]).mean[0]
            axes.plot(*mean.T.numpy(), style, color="C0", lw=1.2, label=f"mean{name}")
        axes.plot(*given.x[i, given.rows[i]].T.numpy(), "k.", ms=4, mew=0, label="given")
        axes.set_aspect("equal", "datalim")
        axes.set_title(titles[i], fontsize=8)
        axes.set_xlabel(names[0], fontsize=8)
        axes.tick_params(labelsize=7)
    row[0].set_ylabel(names[1], fontsize=8)
    handles, labels = row[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=7, ncols=len(labels), loc="upper right")
    figure.suptitle(" ")
    return figure


@torch.no_grad()
def _latent(
    net: LatentPredictor, given: Series, known: Sequence[Series], labels: Tensor | None, classes: Sequence[str]
) -> Figure:
    """Paths of the latent state from the mean of its start, in the plane of most variance; coloured by class."""
    size = min(_PATHS, len(given))
    times = torch.cat([part.t[part.rows] for part in (given, *known)])
    ts = torch.linspace(float(times.min()), float(times.max()), _TIMES)
    z = net.model.latent_path(given[:size].trimmed(), ts)
    centred = z - z.mean((0, 1))
    plane = torch.linalg.svd(centred.flatten(0, 1), full_matrices=False).Vh[:2]
    path, names = centred @ plane.T, ("z1 (first principal component)", "z2 (second principal component)")
    if len(plane) == 1:  # a latent state of one number, by time
        path, names = torch.cat([ts[:, None].expand_as(path), path], -1), ("time", "z1")
    figure = Figure(figsize=(4.8, 4.4))
    axes = figure.subplots()
    for i in range(size):
        colour = "C0" if labels is None else f"C{int(labels[i]) % 10}"
        axes.plot(*path[i].T.numpy(), lw=0.7, alpha=0.7, color=colour)
        axes.plot(*path[i, 0].numpy(), ".", ms=4, color=colour)
    for k, name in enumerate(classes if labels is not None else ()):
        axes.plot([], [], color=f"C{k % 10}", label=name)
    if labels is not None:
        axes.legend(fontsize=8)
    axes.set(xlabel=names[0], ylabel=names[1])
    return figure


def attribution(net: nn.Module, series: Series) -> Tensor:
    """How strongly the output depends on each row, (B, T): the norm of its gradient in the row's values.

    Of the logit of the likeliest class, or of the number; values count in deviations of the data.
    """
    x = series.x.clone().requires_grad_()
    output = net(series.with_values(series.t, x, series.static))
    chosen = output if output.ndim == 1 else output.amax(1)
    (slope,) = torch.autograd.grad(chosen.sum(), x)
    scale: Any = net.model.normalizer.std  # type: ignore[union-attr]
    return torch.where(series.mask, slope * scale, 0.0).norm(dim=-1)


def _attribution(net: nn.Module, info: Mapping[str, Any], series: Series, labels: Tensor) -> Figure:
    """By time: the share of each row in what the output depends on, above the values of some channels."""
    strength = attribution(net, series)
    with torch.no_grad():
        output = net(series)
    size, names = len(series), info["channels"]
    figure = Figure(figsize=(3.1 * size + 0.6, 4.2))
    grid = figure.subplots(2, size, squeeze=False, sharex="col")
    for i in range(size):
        rows = series.rows[i]
        time, share = series.t[i, rows].numpy(), strength[i, rows]
        share = share / share.sum().clamp(min=torch.finfo(share.dtype).tiny)
        above, below = grid[0][i], grid[1][i]
        above.vlines(time, 0, share.numpy(), lw=1.5)
        above.set_ylim(0, None)
        for c, name in enumerate(names[:_CHANNELS]):
            at = series.mask[i, :, c]
            below.plot(series.t[i, at].numpy(), series.x[i, at, c].numpy(), ".-", ms=3, lw=0.8, label=name)
        if isinstance(net, ClassPredictor):
            p, best = output[i].softmax(0).max(0)
            title = f"predicted {info['classes'][int(best)]} ({float(p):.2f}), true {info['classes'][int(labels[i])]}"
        else:
            title = f"predicted {float(output[i]):.4g}, true {float(labels[i]):.4g}"
        above.set_title(title, fontsize=8)
        below.set_xlabel(info["layout"]["time"], fontsize=8)
        for axes in (above, below):
            axes.tick_params(labelsize=7)
    grid[0][0].set_ylabel("share of the gradient", fontsize=8)
    grid[1][0].set_ylabel("values", fontsize=8)
    grid[1][0].legend(fontsize=6)
    return figure


@torch.no_grad()
def _reliability(net: ClassPredictor, series: Series, labels: Tensor) -> Figure:
    """How often the likeliest class is right, by its probability, and how many series there are of each."""
    p, best = torch.cat([net(part) for part in _parts(series)]).softmax(1).max(1)
    right = (best == labels).float()
    bin_of = (p * BINS).long().clamp(max=BINS - 1)
    count = torch.bincount(bin_of, minlength=BINS).float()
    accuracy = torch.bincount(bin_of, right, minlength=BINS) / count
    centre = (torch.arange(BINS) + 0.5) / BINS
    figure = Figure(figsize=(5.0, 4.8))
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(5, 2))
    some = count > 0
    above.bar(centre[some].numpy(), accuracy[some].numpy(), 0.9 / BINS, label="share of correct predictions")
    above.plot([0, 1], [0, 1], "--", color="0.4", lw=1.0, label="well calibrated")
    above.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02))
    above.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)
    bars = below.bar(centre[some].numpy(), count[some].numpy(), 0.9 / BINS, color="0.6")
    below.bar_label(bars, fmt="%d", fontsize=7)
    below.margins(y=0.25)
    below.set(xlabel="predicted probability of the likeliest class", ylabel="number of series")
    return figure


def _parts(series: Series) -> list[Series]:
    return [series[start : start + 256].trimmed() for start in range(0, len(series), 256)]
