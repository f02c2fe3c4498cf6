"""Images from files: PNG and JPEG by Pillow, arrays from .npz."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from ..errors import UserError, first_line

SUFFIXES = (".png", ".jpg", ".jpeg")
_SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
Found = tuple[dict[str, tuple[Tensor, Tensor]], list[str]]


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """An image file. Raises UserError where Pillow cannot read it, and for values that would be cut to 8 bits."""
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            if image.mode[0] in "IF":
                raise ValueError("more than 8 bits a value")
            yield image
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} is no image of 8 bits ({first_line(error)}): remove or replace it") from None


def read_image(path: Path, colour: bool, size: int) -> Tensor:
    """An image file as uint8 (C, size, size), C 3 or 1."""
    with _opened(path) as image:
        upright = np.array(ImageOps.exif_transpose(image).convert("RGB" if colour else "L"))
    pixels = torch.from_numpy(upright).reshape(*upright.shape[:2], -1).permute(2, 0, 1)
    return resized(pixels[None], size)[0]


def _look(path: Path) -> tuple[bool, tuple[int, int]]:
    """Whether an image file has colours, and its size."""
    with _opened(path) as image:
        return image.mode not in ("1", "L", "LA"), image.size


def resized(images: Tensor, size: int) -> Tensor:
    """Images (N, C, H, W), each side of `size` pixels; smoothed where that is fewer."""
    if images.shape[-2:] == (size, size):
        return images
    values = F.interpolate(images.float(), (size, size), mode="bilinear", antialias=True, align_corners=False)
    return values.clamp(0, 1) if images.is_floating_point() else values.round().clamp(0, 255).to(torch.uint8)


def images_in(folder: Path) -> list[Path]:
    """The PNG and JPEG files of a folder and its sub-folders, in order; other files are named on stderr."""
    there = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    other = [p for p in there if p.suffix.lower() not in SUFFIXES]
    if other:
        more = f" and {len(other) - 1} more files are" if len(other) > 1 else " is"
        print(f"odenet: {other[0]}{more} left out: only .png, .jpg and .jpeg are read", file=sys.stderr)
    return [p for p in there if p.suffix.lower() in SUFFIXES]


def _folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def read_folder(folder: Path, size: int, largest: int) -> Found:
    """A folder with a sub-folder for each class, or with sub-folders train, val and test that have those."""
    parts = {
        split: next((folder / n for n in names if (folder / n).is_dir()), None) for split, names in _SPLITS.items()
    }
    roots = {split: path for split, path in parts.items() if path is not None}
    if "train" not in roots:
        roots = {"train": folder}
    classes = [path.name for path in _folders(roots["train"])]
    if not classes:
        raise UserError(f"{roots['train']} has no sub-folders: put the images of each class into a folder of its own")
    files: dict[str, list[tuple[Path, int]]] = {}
    for split, root in roots.items():
        unknown = [path.name for path in _folders(root) if path.name not in classes]
        if unknown:
            raise UserError(f"{root} has the class {unknown[0]!r}, which {roots['train']} has not: add or remove it")
        files[split] = [(path, i) for i, name in enumerate(classes) for path in images_in(root / name)]
        empty = [name for i, name in enumerate(classes) if all(label != i for _, label in files[split])]
        if not files[split] or (empty and split == "train"):
            where = root / empty[0] if split == "train" else root
            raise UserError(f"{where} has no PNG or JPEG images: add some, or remove the folder")
    looks = [_look(path) for own in files.values() for path, _ in own]
    colour, sizes = any(look[0] for look in looks), {look[1] for look in looks}
    width, height = next(iter(sizes))
    side = size or (width if len(sizes) == 1 and width == height and width <= largest else largest)
    found = {
        split: (
            torch.stack([read_image(path, colour, side) for path, _ in own]),
            torch.tensor([label for _, label in own]),
        )
        for split, own in files.items()
    }
    return found, classes


def read_npz(path: Path) -> Found:
    """Arrays `images` and `labels`, or x_train, y_train, x_test and y_test; x_val and y_val if there are any."""
    arrays = _arrays(path)
    names = {"train": ("images", "labels")}
    if "x_train" in arrays:
        names = {split: (f"x_{split}", f"y_{split}") for split in _SPLITS if f"x_{split}" in arrays}
    missing = [name for pair in names.values() for name in pair if name not in arrays]
    if missing:
        raise UserError(
            f"{path} has no array {missing[0]!r}: give images and labels, or x_train, y_train, x_test, y_test"
        )
    labels = {split: _labels(path, y, arrays[y]) for split, (_, y) in names.items()}
    classes = np.unique(labels["train"])
    found = {}
    for split, (x, y) in names.items():
        images, own = image_tensor(path, x, arrays[x]), labels[split]
        if len(images) != len(own):
            raise UserError(f"{path}: {x} has {len(images)} images and {y} {len(own)} labels: they must be as many")
        unknown = np.setdiff1d(own, classes)
        if len(unknown):
            raise UserError(f"{path}: {y} has the label {unknown[0]}, which {names['train'][1]} has not")
        found[split] = images, torch.from_numpy(np.searchsorted(classes, own).astype(np.int64))
    if len({images.shape[1:] for images, _ in found.values()}) > 1:
        raise UserError(f"{path}: its images differ in shape: {', '.join(str(i.shape) for i, _ in found.values())}")
    return found, [str(label) for label in classes]


def _arrays(path: Path) -> dict[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, BadZipFile, EOFError, AttributeError) as error:
        raise UserError(f"{path} cannot be read as .npz ({first_line(error)}): save it by numpy.savez") from None


def _labels(path: Path, name: str, labels: Any) -> Any:
    flat = labels.reshape(-1) if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if flat.ndim != 1 or flat.dtype.kind not in "iuU" or len(flat) == 0:
        raise UserError(
            f"{path}: {name} has shape {labels.shape} and dtype {labels.dtype}: labels are integers or texts, (N,)"
        )
    return flat


def image_tensor(path: Path, name: str, images: Any) -> Tensor:
    """An array (N, H, W), (N, H, W, C) or (N, C, H, W) as (N, C, H, W); C 1 or 3, last where both axes could be."""
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and images.shape[-1] in (1, 3):
        images = np.moveaxis(images, -1, 1)
    if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape:
        raise UserError(
            f"{path}: {name} has shape {images.shape}: (N, H, W), (N, H, W, C) or (N, C, H, W) with C 1 or 3"
        )
    if images.dtype == np.uint8:
        return torch.from_numpy(np.ascontiguousarray(images))
    if images.dtype.kind != "f":
        raise UserError(f"{path}: {name} has dtype {images.dtype}: give uint8, or floats in [0, 1]")
    if not (images.min() >= 0 and images.max() <= 1):  # so for NaN
        raise UserError(
            f"{path}: {name} has values from {images.min():g} to {images.max():g}: floats lie in [0, 1]; divide by 255"
        )
    return torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32))


def inputs(paths: Sequence[Path], colour: bool, size: int) -> Iterator[tuple[str, Tensor]]:
    """Images to predict, by file: (N, C, size, size) of an .npz file, (1, C, size, size) of an image file."""
    for path in paths:
        if path.suffix == ".npz":
            arrays = _arrays(path)
            name = next((n for n in ("images", "x_test") if n in arrays), None)
            if name is None:
                raise UserError(f"{path} has no array 'images' (nor 'x_test')")
            images = image_tensor(path, name, arrays[name])
            if images.shape[1] != (3 if colour else 1):
                raise UserError(
                    f"{path}: {name} has {images.shape[1]} channels, and the net takes {3 if colour else 1}"
                )
            yield str(path), resized(images, size)
        elif path.is_dir():
            yield from inputs(images_in(path), colour, size)
        else:
            yield str(path), read_image(path, colour, size)[None]
