"""Image data from every source: what is read, and mistakes that end in one line with the file and the cure."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from command_line import call, default_dtype, refused
from odenet.train import UserError
from odenet.train.images.data import Samples, load
from odenet.train.images.image_files import read_image

__all__ = ["default_dtype"]


def pictures(root: Path, number: int = 6, colour: bool = True, size: tuple[int, int] = (20, 20)) -> Path:
    """A folder with three classes, each of an own colour, or an own bright stripe."""
    chance = np.random.default_rng(0)
    for i, name in enumerate(("cat", "dog", "eel")):
        (root / name).mkdir(parents=True)
        for number_of in range(number):
            pixels = chance.integers(0, 60, (size[1], size[0], 3), dtype=np.uint8)
            pixels[..., i] += 150
            image = Image.fromarray(pixels if colour else pixels[..., 0] + np.uint8(20 * i))
            image.save(root / name / f"{number_of}.{('png', 'jpg', 'JPEG')[number_of % 3]}")
    return root


def read(path: Path | str, size: int = 0, seed: int = 0, data_dir: str = "") -> tuple[dict[str, int], list[str], int]:
    load.cache_clear()
    found = load(str(path), data_dir, size, seed, False)
    return {k: len(y) for k, (_, y) in found.splits.items()}, found.classes, found.size


def wrong(path: Path | str, match: str, data_dir: str = "") -> None:
    with pytest.raises(UserError, match=match) as error:
        read(path, data_dir=data_dir)
    assert "\n" not in str(error.value)


def test_digits() -> None:
    assert read("digits") == ({"train": 1259, "test": 359, "val": 179}, [str(i) for i in range(10)], 8)


def test_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = pictures(tmp_path / "a")
    assert read(folder) == ({"train": 12, "test": 3, "val": 3}, ["cat", "dog", "eel"], 20)
    data = load(str(folder), "", 0, 0, False)
    assert data.channels == 3
    for images, labels in data.splits.values():
        assert images.dtype == torch.uint8
        assert torch.equal(images.float().mean((2, 3)).argmax(1), labels)  # the colours are those of the classes
        assert len(labels.unique()) == 3
    (folder / "cat" / "notes.txt").write_text("mine")
    assert read(folder, size=9)[2] == 9
    told = capsys.readouterr().err
    assert "1 file(s) left out" in told and "notes.txt" in told


def test_folder_of_grey_images_of_other_sizes(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "a", colour=False, size=(30, 20))
    assert read(folder)[2] == 64
    assert load(str(folder), "", 0, 0, False).channels == 1
    Image.new("RGB", (9, 9), "red").save(folder / "cat" / "red.png")
    load.cache_clear()
    assert load(str(folder), "", 16, 0, False).channels == 3


def test_folder_with_splits(tmp_path: Path) -> None:
    pictures(tmp_path / "train", 8)
    pictures(tmp_path / "test", 2)
    assert read(tmp_path) == ({"train": 21, "test": 6, "val": 3}, ["cat", "dog", "eel"], 20)
    (tmp_path / "test" / "eel").rename(tmp_path / "test" / "fox")
    wrong(tmp_path, "has no images to train on")


def test_splits_follow_from_the_seed(tmp_path: Path) -> None:
    folder = str(pictures(tmp_path / "a", 12))

    def images(seed: int) -> dict[str, torch.Tensor]:
        load.cache_clear()
        return {k: x for k, (x, _) in load(folder, "", 8, seed, False).splits.items()}

    first, again, other = images(1), images(1), images(2)
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.equal(first["test"], other["test"])
    everything = torch.cat([*first.values()]).flatten(1)
    assert len(everything.unique(dim=0)) == len(everything) == 36  # no image is in two splits


def test_mistakes_in_a_folder(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "a")
    (folder / "fox").mkdir()
    wrong(folder, r"a/fox has no images")
    (folder / "fox").rmdir()
    (folder / "cat" / "0.png").write_text("no image")
    wrong(folder, r"cat/0\.png is no image .*: remove or replace it")
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(folder / "cat" / "0.png")
    wrong(folder, r"cat/0\.png .*more than 8 bits a value")
    one = tmp_path / "one" / "cat"
    one.mkdir(parents=True)
    wrong(tmp_path / "one", "has no images")
    Image.new("L", (8, 8)).save(one / "a.png")
    wrong(tmp_path / "one", "one class only, 'cat'")
    wrong(pictures(tmp_path / "few", 2), "too few images of a class")
    (tmp_path / "none").mkdir()
    wrong(tmp_path / "none", "none has no images: a sub-folder for each class")
    wrong(tmp_path / "nowhere", "unknown. Known: digits, mnist, a folder")


def test_upright(tmp_path: Path) -> None:
    """A photograph that its camera has marked as turned is turned back."""
    image = Image.new("RGB", (8, 8), "black")
    image.paste("white", (0, 0, 8, 4))
    turned = Image.Exif()
    turned[274] = 3
    image.save(tmp_path / "a.jpg", exif=turned)
    pixels = read_image(tmp_path / "a.jpg", "L", 8)[0].float()
    assert pixels[:4].mean() < 20 and pixels[4:].mean() > 235


CHANCE = np.random.default_rng(0)
BYTES, LABELS = CHANCE.integers(0, 256, (60, 12, 12), dtype=np.uint8), np.arange(60) % 3
GOOD = {
    "grey": {"images": BYTES, "labels": LABELS},
    "channels last": {"images": np.stack([BYTES] * 3, -1), "labels": LABELS},
    "channels first": {"images": np.stack([BYTES] * 3, 1), "labels": LABELS.reshape(-1, 1)},
    "one channel": {"images": BYTES[..., None], "labels": LABELS},
    "floats": {"images": BYTES / 255.0, "labels": np.array(["a", "b", "c"])[LABELS]},
    "keras": {"x_train": BYTES, "y_train": LABELS, "x_test": BYTES[:20], "y_test": LABELS[:20]},
}


@pytest.mark.parametrize("name", GOOD)
def test_npz(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, **GOOD[name])
    sizes, classes, size = read(path)
    assert size == 12 and classes == (["a", "b", "c"] if name == "floats" else ["0", "1", "2"])
    assert sizes == ({"train": 53, "val": 7, "test": 20} if name == "keras" else {"train": 42, "val": 6, "test": 12})
    data = load(str(path), "", 0, 0, False)
    assert data.channels == (3 if "channels" in name else 1)
    image, label = Samples(*data.splits["test"])[0]
    assert image.dtype == torch.float32 and 0.9 < image.max() <= 1
    index = int((torch.tensor(BYTES) / 255 - image[0]).abs().sum((1, 2)).argmin())
    assert torch.allclose(torch.tensor(BYTES[index]) / 255, image[0]) and LABELS[index] == label


BAD = {
    "no images to train on": ({"x_test": BYTES, "y_test": LABELS}, "no array .images."),
    "no labels": ({"images": BYTES}, "no array 'labels'"),
    "names": ({"x": BYTES, "y": LABELS}, "no array 'images'"),
    "labels that are floats": ({"images": BYTES, "labels": LABELS / 2}, "labels is of shape .* integers or texts"),
    "too few labels": ({"images": BYTES, "labels": LABELS[:-1]}, "and .* labels for train: one label"),
    "floats to 255": (
        {"images": BYTES.astype(float), "labels": LABELS},
        r"from 0\.0 to 255\.0: give uint8, or floats in \[0, 1\]",
    ),
    "NaN": ({"images": np.full((9, 8, 8), np.nan), "labels": LABELS[:9]}, "from nan to nan: give uint8, or floats"),
    "int32": ({"images": BYTES.astype(np.int32), "labels": LABELS}, "int32"),
    "two channels": ({"images": np.stack([BYTES] * 2, -1), "labels": LABELS}, "C 1 or 3"),
    "no images": ({"images": BYTES[:0], "labels": LABELS[:0]}, "C 1 or 3"),
    "objects": ({"images": np.array([{}]), "labels": LABELS}, "cannot be read"),
    "a class of the test": (
        GOOD["keras"] | {"y_test": LABELS[:20] + 5},
        "the class .5. for test has no images to train on",
    ),
    "one class": ({"images": BYTES, "labels": LABELS * 0}, "one class only"),
}


@pytest.mark.parametrize("name", BAD)
def test_npz_that_is_wrong(name: str, tmp_path: Path) -> None:
    arrays, match = BAD[name]
    np.savez(tmp_path / "a.npz", **arrays)
    wrong(tmp_path / "a.npz", rf"a\.npz.*{match}")


def test_npz_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, **GOOD["grey"])
    raw = path.read_bytes()
    for bad in (b"", b"text", raw[:-30], raw[:200]):
        path.write_bytes(bad)
        wrong(path, r"a\.npz cannot be read")


def mnist(folder: Path, images: int = 40) -> None:
    """Four files of MNIST's form, two of them gzipped."""
    folder.mkdir()
    for part, n in (("train", images), ("t10k", 20)):
        pixels, labels = CHANCE.integers(0, 256, (n, 28, 28), dtype=np.uint8), (np.arange(n) % 10).astype(np.uint8)
        raw = struct.pack(">4I", 2051, n, 28, 28) + pixels.tobytes()
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(raw, 1))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 2049, n) + labels.tobytes())


def test_mnist(tmp_path: Path) -> None:
    folder = tmp_path / "mnist"
    mnist(folder)
    assert read("mnist", data_dir=str(folder)) == (
        {"train": 30, "val": 10, "test": 20},
        [str(i) for i in range(10)],
        28,
    )
    images = folder / "train-images-idx3-ubyte.gz"
    good = gzip.decompress(images.read_bytes())
    for bad in (good[:-1], good + b"x", b"", gzip.compress(good)[:-9]):
        images.write_bytes(bad)
        wrong("mnist", r"train-images-idx3-ubyte\.gz cannot be read .*--data-dir", str(folder))
    images.unlink()
    wrong("mnist", "train-images-idx3-ubyte cannot be read", str(folder))
    wrong("digits", "--data-dir is for mnist alone", str(folder))


def test_mnist_that_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(*_: object, **__: object) -> str:
        raise OSError("no such host\nand more")

    monkeypatch.setattr("pooch.Pooch.fetch", fetch)
    wrong("mnist", r"cannot be read \(no such host\): give MNIST's four files by --data-dir")


def test_shifts_follow_from_the_seed() -> None:
    images, labels = torch.rand(30, 1, 8, 8), torch.arange(30)
    (first, _), (again, _), (other, _) = (next(iter(DataLoader(Samples(images, labels, 2, s), 30))) for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    unmoved = (first == images).flatten(1).all(1)
    assert unmoved.sum() < 10
    inner = first[:, :, 2:-2, 2:-2]  # what came in from the border is zero, and the rest is moved as a whole
    assert all((torch.isin(inner[i], images[i])).all() for i in range(30))


def test_train_predict_and_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder of images, and a net that tells its classes."""
    folder = pictures(tmp_path / "data", 20, size=(12, 12))
    run = tmp_path / "run"
    words = ("--net", "resnet", "--channels", 8, "--epochs", 40, "--batch-size", 16, "--lr", 2e-2)
    assert call(monkeypatch, "train", "images", "--data", folder, *words, "--out", run) == 0
    capsys.readouterr()
    (folder / "eel" / "0.png").rename(tmp_path / "what.png")
    given = (folder / "cat", tmp_path / "what.png")
    assert call(monkeypatch, "predict", run, *given, "--out", tmp_path / "told") == 0
    assert "probability" in capsys.readouterr().out
    rows = (tmp_path / "told" / "predictions.csv").read_text().splitlines()
    assert rows[0] == "file,class,probability" and len(rows) == 22
    assert all(f"{folder / 'cat'}/" in row and ",cat,0." in row for row in rows[1:21])
    assert rows[21].startswith(f"{tmp_path / 'what.png'},eel,0.")
    np.savez(tmp_path / "a.npz", images=BYTES)
    refused(["predict", str(run), str(tmp_path / "a.npz")], "of 1 channels, and the net is of 3", monkeypatch, capsys)
    refused(["predict", str(run), str(tmp_path / "no.png")], "no.png is not there", monkeypatch, capsys)
    refused(["predict", str(tmp_path), str(given[1])], "holds no run", monkeypatch, capsys)
    Image.new("RGBA", (100, 50), (200, 20, 20, 255)).save(tmp_path / "wide.png")
    assert call(monkeypatch, "predict", run, tmp_path / "wide.png") == 0
    assert "cat" in capsys.readouterr().out
