"""Image data: the embedded digits, and MNIST from IDX files or the network."""

from __future__ import annotations

import gzip
import hashlib
import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from textwrap import shorten

import numpy as np
import torch
from torch import Tensor

from ..errors import unknown_name
from .problems import UserError
from .processes import Part

DATA_SETS = ("digits", "mnist")
_MAGIC = {2051: 3, 2049: 1}  # IDX: unsigned bytes, by number of axes
_MIRROR = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_SHA256 = {
    "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}


@dataclass(frozen=True)
class Split:
    """images: (N, 1, H, W) float32 in [0, 1]. labels: (N,) int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def head(self, n: int) -> Split:
        return Split(self.images[:n], self.labels[:n])


@dataclass(frozen=True)
class ImageData:
    """name, the three splits, and by how many pixels a training image may be shifted."""

    name: str
    train: Split
    val: Split
    test: Split
    shift: int

    def small(self) -> ImageData:
        """A few images of each split, for a smoke run."""
        return ImageData(self.name, self.train.head(128), self.val.head(64), self.test.head(64), self.shift)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all images and labels: what tells a resumed run that the data are those it began with."""
        digest = hashlib.sha256(f"{self.name} {self.shift}".encode())
        for split in (self.train, self.val, self.test):
            for part in (split.images, split.labels):
                digest.update(f" {tuple(part.shape)} {part.dtype} ".encode())
                digest.update(np.ascontiguousarray(part.numpy()).data)
        return digest.hexdigest()


def load(name: str, data_dir: Path | None) -> ImageData:
    """The data set by name; `data_dir` holds MNIST's four IDX files (gzipped or not)."""
    if name not in DATA_SETS:
        raise UserError(str(unknown_name("data set", name, DATA_SETS)))
    if name == "digits":
        if data_dir is not None:
            raise UserError("--data-dir is for mnist: digits are embedded; leave it out, or choose mnist")
        return _digits()
    return _mnist(data_dir)


def _digits() -> ImageData:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, target = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    labels = torch.tensor(target, dtype=torch.int64)
    rest, test = train_test_split(np.arange(len(labels)), test_size=360, random_state=0, stratify=target)
    train, val = train_test_split(rest, test_size=180, random_state=0, stratify=target[rest])
    splits = [Split(images[i], labels[i]) for i in (train, val, test)]
    return ImageData("digits", *splits, shift=1)


def _mnist(data_dir: Path | None) -> ImageData:
    files = _fetched() if data_dir is None else _in_folder(data_dir)
    arrays = {name: read_idx(path) for name, path in files.items()}
    splits = []
    for part, size in (("train", 28), ("t10k", 28)):
        images, labels = arrays[f"{part}-images-idx3-ubyte.gz"], arrays[f"{part}-labels-idx1-ubyte.gz"]
        if images.ndim != 3 or images.shape[1:] != (size, size) or labels.shape != images.shape[:1]:
            raise UserError(
                f"MNIST's {part} images {images.shape} and labels {labels.shape} do not belong together: expected "
                f"(N, {size}, {size}) and (N,); fetch the four files anew"
            )
        if labels.max(initial=0) > 9:
            raise UserError(f"MNIST's {part} labels go up to {labels.max()}, not 9: fetch the four files anew")
        scaled = torch.from_numpy(images.astype(np.float32) / 255).unsqueeze(1)
        splits.append(Split(scaled, torch.from_numpy(labels.astype(np.int64))))
    whole, test = splits
    if len(whole) < 1000:
        raise UserError(f"MNIST's training files hold {len(whole)} images: fetch the four files anew")
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(0))
    held = max(1, len(whole) // 12)  # 5,000 of 60,000
    val, train = order[:held], order[held:]
    return ImageData(
        "mnist",
        Split(whole.images[train], whole.labels[train]),
        Split(whole.images[val], whole.labels[val]),
        test,
        shift=2,
    )


def _in_folder(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise UserError(f"--data-dir {folder} is not a folder: give the one with MNIST's four IDX files")
    found = {}
    for name in _SHA256:
        options = [folder / name, folder / name.removesuffix(".gz")]
        path = next((p for p in options if p.is_file()), None)
        if path is None:
            raise UserError(f"--data-dir {folder} has no {name} (nor {options[1].name}): put MNIST's four files there")
        found[name] = path
    return found


def _fetched() -> dict[str, Path]:
    import pooch

    fetcher = pooch.create(
        path=pooch.os_cache("odenet"), base_url=_MIRROR, registry={k: f"sha256:{v}" for k, v in _SHA256.items()}
    )
    pooch.get_logger().setLevel("ERROR")
    try:
        return {name: Path(fetcher.fetch(name)) for name in _SHA256}
    except Exception as error:  # whatever the network and its client raise, the cure is the same
        reason = shorten(str(error) or type(error).__name__, 400, placeholder=" ...")  # at the end of a word
        raise UserError(f"MNIST could not be fetched ({reason}): give --data-dir with its four files") from None


def read_idx(path: Path) -> np.ndarray:
    """An IDX file of unsigned bytes, gzipped or not. Raises UserError that names the file and what is wrong with it."""
    try:
        raw = path.read_bytes()
        data = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read ({error}): fetch the file anew") from None
    magic = struct.unpack(">I", data[:4])[0] if len(data) >= 4 else -1
    if magic not in _MAGIC:
        raise UserError(f"{path} is not an IDX file of bytes (magic number {magic}, not 2049 or 2051): fetch it anew")
    axes = _MAGIC[magic]
    header = 4 + 4 * axes
    shape = struct.unpack(f">{axes}I", data[4:header]) if len(data) >= header else (-1,)
    if len(data) - header != math.prod(shape):
        raise UserError(f"{path} is cut short or damaged: {len(data)} bytes for shape {shape}; fetch it anew")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


class Batches:
    """Batches of a split in an order, and with shifts, that follow from the seed alone.

    So an interrupted training takes up the very batches that an undisturbed one would have seen. One of several
    processes gives `part` as its own, and is given its rows of each batch; of a split without a seed, its rows of that.
    """

    def __init__(
        self, split: Split, size: int, seed: int | None = None, shift: int = 0, part: Part | None = None
    ) -> None:
        self.part = part or Part()
        if seed is None and part is not None:
            rows = part.rows(len(split))
            split = Split(split.images[rows], split.labels[rows])
        self.split, self.size, self.seed, self.shift = split, size, seed, shift

    def weight(self, rows: int) -> float:
        """Of a mean over `rows` of a batch: the sum over the processes is then the mean over the whole batch."""
        return rows / min(self.size, len(self.split))

    def __len__(self) -> int:
        full = len(self.split) / self.size
        return max(1, int(full)) if self.seed is not None else -(-len(self.split) // self.size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self.seed is None:
            images, labels = self.split.images.split(self.size), self.split.labels.split(self.size)
            yield from zip(images, labels, strict=True)
            return
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(len(self.split), generator=generator)
        for i in range(len(self)):
            index = order[i * self.size : (i + 1) * self.size]
            rows = self.part.rows(len(index))
            images = shifted(self.split.images[index], self.shift, generator, rows)
            yield images, self.split.labels[index[rows]]


def shifted(images: Tensor, by: int, generator: torch.Generator, part: slice = slice(None)) -> Tensor:
    """Each image of a part of the batch moved by up to `by` pixels along both axes; zeros come in from the border."""
    if by == 0:
        return images[part]
    draws = torch.randint(0, 2 * by + 1, (2, len(images)), generator=generator)  # the same whatever the part
    (down, right), images = draws[:, part], images[part]
    n, _, height, width = images.shape
    padded = torch.nn.functional.pad(images, (by, by, by, by))
    rows = (down[:, None] + torch.arange(height))[:, None, :, None]
    columns = (right[:, None] + torch.arange(width))[:, None, None, :]
    return padded[
        torch.arange(n)[:, None, None, None], torch.arange(images.shape[1])[None, :, None, None], rows, columns
    ]
