"""Images with labels: the embedded digits, MNIST, a folder, an .npz file; in three splits, all in memory."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from ..errors import UserError, first_line
from . import files
from .files import resized

_MIRROR = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_SHA256 = {
    "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}
_LARGEST = 64  # pixels a side where --size is not given
_QUICK = {"train": 128, "val": 64, "test": 64}
Arrays = Mapping[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class ImageData:
    """splits: images (N, C, size, size), uint8 or float in [0, 1], and labels (N,) int64, by split.

    shift: by how many pixels a training image may be moved.
    """

    splits: Arrays
    classes: tuple[str, ...]
    shift: int

    @property
    def channels(self) -> int:
        return self.splits["train"][0].shape[1]

    @property
    def size(self) -> int:
        return self.splits["train"][0].shape[-1]


class Images(Dataset[tuple[Tensor, Tensor]]):
    """Samples (image, label). offsets: by how many pixels, down and right, each image is moved; (N, 2)."""

    def __init__(self, images: Tensor, labels: Tensor, shift: int = 0, seed: int = 0) -> None:
        self.images, self.labels, self.shift = images, labels, shift
        generator = torch.Generator().manual_seed(seed)
        self.offsets = torch.randint(0, 2 * shift + 1, (len(labels), 2), generator=generator).tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = scaled(self.images[index])
        if self.shift:  # zeros come in from the border
            down, right = self.offsets[index]
            height, width = image.shape[-2:]
            image = F.pad(image, (self.shift,) * 4)[:, down : down + height, right : right + width]
        return image, self.labels[index]


def scaled(images: Tensor) -> Tensor:
    """Images as the network takes them: of the default dtype, in [0, 1]."""
    values = images.to(torch.get_default_dtype())
    return values if images.is_floating_point() else values / 255


@lru_cache(maxsize=1)
def load(name: str, data_dir: str, size: int, seed: int, quick: bool) -> ImageData:
    """The data of --data: digits, mnist, a folder with a sub-folder a class, or an .npz file. size 0: their own."""
    if data_dir and name != "mnist":
        raise UserError("--data-dir is for mnist alone: leave it out, or give the folder of images as the data")
    path = Path(name)
    if name == "digits":
        found, classes = _digits()
    elif name == "mnist":
        found, classes = _mnist(data_dir)
    elif path.is_dir():
        found, classes = files.read_folder(path, size, _LARGEST)
    elif path.suffix == ".npz" and path.is_file():
        found, classes = files.read_npz(path)
    else:
        raise UserError(f"data {name!r} is unknown: digits, mnist, a folder of images, or an .npz file that is there")
    if len(classes) < 2:
        raise UserError(f"{name} has one class only, {classes[0]!r}: at least 2 are needed")
    height, width = found["train"][0].shape[-2:]
    side = size or (height if height == width and height <= _LARGEST else _LARGEST)
    split = _split(found, classes, seed, name)
    parts = {k: (resized(images, side), labels) for k, (images, labels) in split.items()}
    if quick:
        parts = {k: (images[: _QUICK[k]], labels[: _QUICK[k]]) for k, (images, labels) in parts.items()}
    return ImageData(parts, tuple(classes), max(1, side // 14))


def _digits() -> files.Found:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    return {"train": (images, torch.tensor(labels, dtype=torch.int64))}, [str(i) for i in range(10)]


def _mnist(folder: str) -> files.Found:
    """From four IDX files, gzipped or not, in the folder; without one they are fetched and checked by pooch."""
    import pooch

    known = {name: f"sha256:{digest}" for name, digest in _SHA256.items()}
    fetcher = pooch.create(path=pooch.os_cache("odenet"), base_url=_MIRROR, registry=known)
    pooch.get_logger().setLevel("ERROR")
    arrays = []
    for name in _SHA256:
        path = Path(folder) / name
        try:
            if not folder:
                path = Path(fetcher.fetch(name))
            elif not path.exists():
                path = path.with_suffix("")
            raw = path.read_bytes()
            data = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
            shape = struct.unpack(">3I", data[4:16]) if "images" in name else struct.unpack(">I", data[4:8])
            arrays.append(torch.tensor(np.frombuffer(data, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)))
        except Exception as error:  # the network and its client, gzip, struct and NumPy: the cure is the same
            raise UserError(
                f"{path} cannot be read ({first_line(error)}): give MNIST's four files by --data-dir"
            ) from None
    x, y, x_test, y_test = arrays
    if len(x) != len(y) or len(x_test) != len(y_test) or max(int(y.max()), int(y_test.max())) > 9:
        raise UserError(f"MNIST's files in {folder} do not belong together: fetch the four anew")
    splits = {"train": (x.unsqueeze(1), y.long()), "test": (x_test.unsqueeze(1), y_test.long())}
    return splits, [str(i) for i in range(10)]


def _split(found: Arrays, classes: Sequence[str], seed: int, name: str) -> dict[str, tuple[Tensor, Tensor]]:
    """All three splits in random order; those that are missing are taken from the training images of each class."""
    generator = torch.Generator().manual_seed(seed)
    parts = {k: torch.randperm(len(labels), generator=generator) for k, (_, labels) in found.items()}
    images, labels = found["train"]
    rest, taken = parts["train"], {}
    for split, share in (("test", 5), ("val", 10)):
        if split in found:
            continue
        held = []
        for number, label in enumerate(classes):
            own = rest[labels[rest] == number]
            if len(own) < 3:
                raise UserError(f"{name}: class {label!r} has {len(own)} images to train on, and at least 3 are needed")
            held.append(own[: max(1, len(own) // share)])
        chosen = torch.isin(rest, torch.cat(held))
        taken[split], rest = rest[chosen], rest[~chosen]
    parts["train"] = rest
    given = {k: (found[k][0][order], found[k][1][order]) for k, order in parts.items()}
    return given | {k: (images[order], labels[order]) for k, order in taken.items()}
