"""One training loop for all models of series: the same optimiser, budget and rule of choice."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from odenet.nn.series_model import SeriesModel
from odenet.series import Series

RATE = 3e-3
LOOKS = 20  # at the validation part


@dataclass(frozen=True)
class Examples:
    """Series and what is to be predicted of each, by sample.

    target: (B,) for a class or a truth value, (B, Q, C) for values. ts: the times of values, (B, Q).
    """

    series: Series
    target: Tensor
    ts: Tensor | None = None

    def __len__(self) -> int:
        return len(self.series)

    def __getitem__(self, index: Tensor) -> Examples:
        ts = None if self.ts is None else self.ts[index]
        return replace(self, series=self.series[index].trimmed(), target=self.target[index], ts=ts)


class Split(NamedTuple):
    """What is learned from, what the weights are chosen by, and what they are tested on."""

    train: Examples
    val: Examples
    test: Examples


# the mean loss of a batch, and the outputs for one
Loss = Callable[[SeriesModel, Examples], Tensor]
Output = Callable[[SeriesModel, Examples], Tensor]


def binary_loss(model: SeriesModel, batch: Examples) -> Tensor:
    """Negative log-likelihood of truth values; the output is the logit, (B, 1)."""
    return functional.binary_cross_entropy_with_logits(model(batch.series)[:, 0], batch.target)


def class_loss(model: SeriesModel, batch: Examples) -> Tensor:
    """Negative log-likelihood of classes; the output has their logits, (B, classes)."""
    return functional.cross_entropy(model(batch.series), batch.target)


def last_output(model: SeriesModel, batch: Examples) -> Tensor:
    """The output behind the last row, (B, out)."""
    return model(batch.series)


def _is_generative(model: SeriesModel) -> bool:
    """Whether it has a bound of the likelihood of its own, as a latent ODE; its values are in the units of the data."""
    return hasattr(model, "elbo")


def values_at(model: SeriesModel, batch: Examples) -> Tensor:
    """Values of the channels at the times that are asked for, (B, Q, C), in the units of the data.

    Other outputs are in the model's scale, so that no model has to learn the units.
    """
    found = model(batch.series, batch.ts)
    return found if _is_generative(model) else model.normalizer.values(found)


def values_loss(model: SeriesModel, batch: Examples) -> Tensor:
    """Mean squared error of values, in the units of the data; a generative model has the bound of its likelihood."""
    if _is_generative(model):
        assert batch.ts is not None
        bound: Any = model
        return bound.loss(batch.series, Series(batch.ts, batch.target))
    return functional.mse_loss(values_at(model, batch), batch.target)


def window_loss(model: SeriesModel, batch: Examples) -> Tensor:
    """How well the rows of a series are explained, without anything beyond them.

    For a generative model the bound of its likelihood. For others the squared error at all rows from those before a
    random one, at least a quarter of them: so a model that is trained on a window learns to go on beyond what it sees.
    """
    series = batch.series
    if _is_generative(model):
        bound: Any = model
        return bound.loss(series)
    row = torch.randint(max(1, series.t.shape[1] // 4), series.t.shape[1], (1,))
    seen = Examples(series.before(series.t[:, row].squeeze(1)), batch.target, series.t)
    error = (values_at(model, seen) - series.x).square()
    return error[series.mask].mean()


@dataclass(frozen=True)
class Fit:
    """How a training went: the best loss on the validation part, iterations, epochs, and seconds of the processor."""

    val: float
    iterations: int
    epochs: float
    seconds: float


def batches(length: Tensor, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Indices of batches, epoch after epoch in random order; series of about the same length stand together."""
    while True:
        order = torch.randperm(len(length), generator=generator)
        blocks = [block[length[block].argsort(stable=True)].split(size) for block in order.split(20 * size)]
        flat = [one for block in blocks for one in block if len(one) == min(size, len(length))]
        yield from (flat[i] for i in torch.randperm(len(flat), generator=generator).tolist())


def evaluate(model: SeriesModel, examples: Examples, output: Output = last_output, size: int = 256) -> Tensor:
    """The outputs for all samples, in their order."""
    order = examples.series.length.argsort(stable=True)
    model.eval()
    with torch.no_grad():
        found = torch.cat([output(model, examples[index]) for index in order.split(size)])
    model.train()
    return torch.empty_like(found).index_copy_(0, order, found)


def mean_loss(model: SeriesModel, examples: Examples, loss: Loss, size: int = 256) -> float:
    model.eval()
    with torch.no_grad():
        order = examples.series.length.argsort(stable=True)
        total = sum(float(loss(model, examples[index])) * len(index) for index in order.split(size))
    model.train()
    return total / len(examples)


def train(
    model: SeriesModel,
    data: Split,
    loss: Loss,
    seed: int,
    batch: int = 64,
    rate: float = RATE,
    *,
    seconds: float = math.inf,
    iterations: float = math.inf,
) -> Fit:
    """Train for some seconds of the processor or some iterations, and leave the weights that were best in validation.

    Adam, from `rate` down to 0 in proportion to what is over, gradients clipped at norm 1; no weights for classes. The
    looks at the validation part are not in the time, and neither is the first step, at which caches are filled.
    """
    model.fit_normalizer(data.train.series)
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # of models that draw
    drawn = batches(data.train.series.length, batch, generator)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)

    def step() -> None:
        optimizer.zero_grad()
        loss(model, data.train[next(drawn)]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, error_if_nonfinite=True)
        optimizer.step()

    step()
    best, passed, done = math.inf, 0.0, 1
    kept = copy.deepcopy(model.state_dict())
    for look in range(1, LOOKS + 1):
        start = time.process_time()
        now = passed
        while (over := max(now / seconds, done / iterations)) < look / LOOKS:
            for group in optimizer.param_groups:
                group["lr"] = rate * (1 - over)
            step()
            done, now = done + 1, passed + time.process_time() - start
        passed = now
        value = mean_loss(model, data.val, loss)
        if value < best:
            best, kept = value, copy.deepcopy(model.state_dict())
    model.load_state_dict(kept)
    return Fit(best, done, done * batch / len(data.train), passed)
