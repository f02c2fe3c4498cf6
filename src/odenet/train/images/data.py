"""Images with labels: the embedded digits, MNIST, a folder, an .npz file; in three splits, all in memory."""

from __future__ import annotations

import gzip
import struct
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from ..user_error import UserError, first_line
from .image_files import LARGEST, Found, read_folder, read_npz, resized

_QUICK = {"train": 128, "val": 64, "test": 64}  # images
_MIRROR = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_SHA256 = {
    "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}
Splits = dict[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class ImageData:
    """splits: images (N, C, size, size), uint8 or float in [0, 1], and the numbers of their classes (N,), by split."""

    splits: Splits
    classes: list[str]

    @property
    def channels(self) -> int:
        return self.splits["train"][0].shape[1]

    @property
    def size(self) -> int:
        return self.splits["train"][0].shape[-1]


class Samples(Dataset[tuple[Tensor, Tensor]]):
    """Pairs (image, label). shift: by how many pixels an image may be moved; how far each is follows from the seed."""

    def __init__(self, images: Tensor, labels: Tensor, shift: int = 0, seed: int = 0) -> None:
        self.images, self.labels, self.shift = images, labels, shift
        generator = torch.Generator().manual_seed(seed)
        self.offsets = torch.randint(0, 2 * shift + 1, (len(labels), 2), generator=generator).tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = scaled(self.images[index])
        if self.shift:  # zeros come in from the border
            (down, right), (height, width) = self.offsets[index], image.shape[-2:]
            image = F.pad(image, (self.shift,) * 4)[:, down : down + height, right : right + width]
        return image, self.labels[index]


def scaled(images: Tensor) -> Tensor:
    """Images as the network takes them: of the default dtype, in [0, 1]."""
    values = images.to(torch.get_default_dtype())
    return values if images.is_floating_point() else values / 255


@lru_cache(maxsize=1)
def load(name: str, data_dir: str, size: int, seed: int, quick: bool) -> ImageData:
    """The data of --data, each side of `size` pixels; size 0: their own, at most LARGEST."""
    path = Path(name)
    if data_dir and name != "mnist":
        raise UserError("--data-dir is for mnist alone: leave it out, or give the folder of images as the data")
    if name == "digits":
        found = _digits()
    elif name == "mnist":
        found = _mnist(data_dir)
    elif path.is_dir():
        found = read_folder(path, size)
    elif path.suffix == ".npz" and path.is_file():
        found = read_npz(path)
    else:
        raise UserError(
            f"data {name!r} is unknown. Known: digits, mnist, a folder of images, an .npz file that is there"
        )
    images, labels = found["train"]
    classes, (height, width) = np.unique(labels), images.shape[-2:]
    if len(classes) < 2:
        raise UserError(f"{name} has one class only, {str(classes[0])!r}: at least 2 are needed")
    numbered = {}
    for split, (x, y) in found.items():
        if len(x) != len(y):
            raise UserError(f"{name} has {len(x)} images and {len(y)} labels for {split}: one label an image is needed")
        if x.shape[1] != images.shape[1]:
            raise UserError(f"{name}: images for {split} have {x.shape[1]} channels, those for train {images.shape[1]}")
        if not np.isin(y, classes).all():
            other = next(str(label) for label in y if label not in classes)
            raise UserError(f"{name}: the class {other!r} for {split} has no images to train on")
        numbered[split] = x, torch.from_numpy(np.searchsorted(classes, y).astype(np.int64))
    side = size or (height if height == width <= LARGEST else LARGEST)
    if side < 2:
        raise UserError("--size 1: the networks need images of at least 2 pixels a side")
    splits = {k: (resized(x, side), y) for k, (x, y) in _split(numbered, len(classes), seed, name).items()}
    if quick:
        splits = {k: (x[: _QUICK[k]], y[: _QUICK[k]]) for k, (x, y) in splits.items()}
    return ImageData(splits, [str(c) for c in classes])


def _split(found: Splits, classes: int, seed: int, name: str) -> Splits:
    """All three splits in random order; test and val, where missing, are a fifth and a tenth of each class."""
    from sklearn.model_selection import train_test_split

    generator = torch.Generator().manual_seed(seed)
    orders = {split: torch.randperm(len(y), generator=generator) for split, (_, y) in found.items()}
    given = {split: (x[orders[split]], y[orders[split]]) for split, (x, y) in found.items()}
    for split, share in (("test", 5), ("val", 8)):
        if split not in given:
            x, y = given["train"]
            size = max(classes, len(y) // share)
            try:
                rest, held = train_test_split(torch.arange(len(y)), test_size=size, random_state=seed, stratify=y)
            except ValueError:
                raise UserError(
                    f"{name} has too few images of a class to take some for {split}: 3 or more are needed"
                ) from None
            given["train"], given[split] = (x[rest], y[rest]), (x[held], y[held])
    return given


def _digits() -> Found:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    return {"train": (torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16, labels)}


def _mnist(folder: str) -> Found:
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
            arrays.append(np.frombuffer(data, np.uint8, offset=4 + 4 * len(shape)).reshape(shape))
        except Exception as error:  # the network and its client, gzip, struct and NumPy: the cure is the same
            reason = first_line(error)
            raise UserError(f"{path} cannot be read ({reason}): give MNIST's four files by --data-dir") from None
    x, y, x_test, y_test = arrays
    return {"train": (torch.tensor(x).unsqueeze(1), y), "test": (torch.tensor(x_test).unsqueeze(1), y_test)}
