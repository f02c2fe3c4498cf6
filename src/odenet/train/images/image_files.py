"""Images from files: PNG and JPEG by Pillow, arrays from .npz."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from ..user_error import UserError, first_line

LARGEST = 64  # pixels a side where --size is not given
SPLITS = ("train", "val", "test")
Found = dict[str, tuple[Tensor, Any]]  # by split: images (N, C, H, W) and an array of labels


def resized(images: Tensor, size: int) -> Tensor:
    """Images (N, C, H, W), each side of `size` pixels; smoothed where that is fewer."""
    if images.shape[-2:] == (size, size):
        return images
    values = F.interpolate(images.float(), (size, size), mode="bilinear", antialias=True, align_corners=False)
    return values.clamp(0, 1) if images.is_floating_point() else values.round().clamp(0, 255).to(torch.uint8)


def read_image(path: Path, mode: str, size: int) -> Tensor:
    """An image file as uint8 (C, size, size), C 3 for the mode "RGB", 1 for "L"; size 0: its own, at most LARGEST."""
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            if image.mode[0] in "IF":
                raise ValueError("more than 8 bits a value")
            pixels = torch.tensor(np.array(ImageOps.exif_transpose(image).convert(mode)))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} is no image of 8 bits ({first_line(error)}): remove or replace it") from None
    height, width = pixels.shape[:2]
    own = width if width == height <= LARGEST else LARGEST
    return resized(pixels.reshape(1, height, width, -1).permute(0, 3, 1, 2), size or own)[0]


def images_in(folder: Path) -> list[Path]:
    """The PNG and JPEG files of a folder and its sub-folders, in order. A line on stderr names what is left out."""
    there = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    images = [p for p in there if p.suffix.lower() in (".png", ".jpg", ".jpeg")]
    if len(images) < len(there):
        first = next(p for p in there if p not in images)
        print(f"odenet: {len(there) - len(images)} file(s) left out, not PNG or JPEG, such as {first}", file=sys.stderr)
    return images


def read_folder(folder: Path, size: int) -> Found:
    """A folder with a sub-folder for each class, or with sub-folders train, val and test that have those."""
    roots = {split: folder / split for split in SPLITS if (folder / split).is_dir()}
    found: Found = {}
    for split, root in roots.items() if "train" in roots else [("train", folder)]:
        classes = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
        files = [(path, place.name) for place in classes for path in images_in(place)]
        empty = [str(place) for place in classes if place.name not in {name for _, name in files}]
        if empty or not classes:
            raise UserError(f"{', '.join(empty) or root} has no images: a sub-folder for each class, PNG or JPEG in it")
        size = size or read_image(files[0][0], "RGB", 0).shape[-1]
        found[split] = torch.stack([read_image(p, "RGB", size) for p, _ in files]), np.array([n for _, n in files])
    if all(bool((images == images[:, :1]).all()) for images, _ in found.values()):  # grey
        found = {split: (images[:, :1], labels) for split, (images, labels) in found.items()}
    return found


def read_npz(path: Path) -> Found:
    """Arrays images and labels, or x_train, y_train, x_test and y_test; x_val and y_val if there are any."""
    arrays = _arrays(path)
    names = {"train": ("images", "labels")}
    if "x_train" in arrays:
        names = {split: (f"x_{split}", f"y_{split}") for split in SPLITS if f"x_{split}" in arrays}
    return {split: (_images(path, x, arrays), _labels(path, y, arrays)) for split, (x, y) in names.items()}


def _arrays(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except Exception as error:  # of NumPy, zipfile and zlib; the cure is the same
        raise UserError(
            f"{path} cannot be read ({first_line(error)}): save it by numpy.savez, without objects"
        ) from None


def _of(path: Path, name: str, arrays: Mapping[str, Any]) -> Any:
    if name not in arrays:
        raise UserError(f"{path} has no array {name!r}: images and labels, or x_train, y_train, x_test and y_test")
    return arrays[name]


def _labels(path: Path, name: str, arrays: Mapping[str, Any]) -> Any:
    given = _of(path, name, arrays)
    labels = given.reshape(-1) if given.shape[1:] == (1,) else given
    if labels.ndim != 1 or labels.dtype.kind not in "iuU":
        raise UserError(f"{path}: {name} is of shape {given.shape}, {given.dtype}: labels are (N,), integers or texts")
    return labels


def _images(path: Path, name: str, arrays: Mapping[str, Any]) -> Tensor:
    """As (N, C, H, W) of (N, H, W), (N, H, W, C) or (N, C, H, W); C is 1 or 3, and last where both axes could be it."""
    given = images = _of(path, name, arrays)
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and images.shape[-1] in (1, 3):
        images = np.moveaxis(images, -1, 1)
    if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape:
        raise UserError(f"{path}: {name} is of shape {given.shape}: (N, H, W), (N, H, W, C) or (N, C, H, W), C 1 or 3")
    if images.dtype != np.uint8 and not (images.dtype.kind == "f" and images.min() >= 0 and images.max() <= 1):
        found = f"{given.dtype} from {images.min()} to {images.max()}"
        raise UserError(f"{path}: {name} is {found}: give uint8, or floats in [0, 1]")
    return torch.tensor(images if images.dtype == np.uint8 else images.astype(np.float32))


def inputs(paths: Sequence[Path], channels: int, size: int) -> Iterator[tuple[str, Tensor]]:
    """Images to predict, (N, C, size, size), by name: of an image file one, of an .npz file all."""
    for path in paths:
        if path.is_dir():
            yield from inputs(images_in(path), channels, size)
        elif path.suffix != ".npz":
            yield str(path), read_image(path, "RGB" if channels == 3 else "L", size)[None]
        else:
            arrays = _arrays(path)
            images = _images(path, "x_test" if "x_test" in arrays else "images", arrays)
            if images.shape[1] != channels:
                raise UserError(f"{path} has images of {images.shape[1]} channels, and the net is of {channels}")
            yield str(path), resized(images, size)
