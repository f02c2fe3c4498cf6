"""MNIST: four IDX files from a folder, or fetched and checked by pooch."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import UserError, first_line

_MIRROR = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_AXES = {2051: 3, 2049: 1}  # of IDX files of unsigned bytes, by magic number
_SHA256 = {
    "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}


def load(folder: str) -> tuple[dict[str, Any], list[str]]:
    """Training and test images, and the names of the classes."""
    paths = _in_folder(Path(folder)) if folder else _fetched()
    found = {}
    for split, part in (("train", "train"), ("test", "t10k")):
        images = read_idx(paths[f"{part}-images-idx3-ubyte.gz"])
        labels = read_idx(paths[f"{part}-labels-idx1-ubyte.gz"])
        if images.ndim != 3 or labels.shape != images.shape[:1] or labels.max(initial=0) > 9 or len(labels) == 0:
            raise UserError(
                f"MNIST's {part} images {images.shape} and labels {labels.shape}, up to {labels.max(initial=0)}, do not "
                "belong together: fetch the four files anew"
            )
        found[split] = torch.tensor(images).unsqueeze(1), torch.tensor(labels, dtype=torch.int64)
    return found, [str(i) for i in range(10)]


def _in_folder(folder: Path) -> dict[str, Path]:
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

    known = {name: f"sha256:{digest}" for name, digest in _SHA256.items()}
    fetcher = pooch.create(path=pooch.os_cache("odenet"), base_url=_MIRROR, registry=known)
    pooch.get_logger().setLevel("ERROR")
    try:
        return {name: Path(fetcher.fetch(name)) for name in _SHA256}
    except Exception as error:  # whatever the network and its client raise, the cure is the same
        raise UserError(f"MNIST could not be fetched ({first_line(error)}): give --data-dir with its four files") from None


def read_idx(path: Path) -> np.ndarray:
    """An IDX file of unsigned bytes, gzipped or not."""
    try:
        raw = path.read_bytes()
        data = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read ({error}): fetch the file anew") from None
    axes = _AXES.get(struct.unpack(">I", data[:4])[0] if len(data) >= 4 else -1, 0)
    header = 4 + 4 * axes
    shape = struct.unpack(f">{axes}I", data[4:header]) if axes and len(data) >= header else (-1,)
    if len(data) - header != math.prod(shape):
        raise UserError(f"{path} is no IDX file of bytes, or damaged: {len(data)} bytes, shape {shape}; fetch it anew")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)
