"""Files of a run that are damaged or hostile: the damage is noticed, and nothing in them is run."""

from __future__ import annotations

import builtins
import io
import os
import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import odenet.train
from command_line import call, default_dtype, refused
from odenet.train.checkpoint import DamagedError, listed, newest, read
from odenet.train.user_error import UserError

__all__ = ["default_dtype"]
WORDS = ["train", "images", "--net", "resnet", "--quick", "--epochs", "2", "--out"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "run"
    with pytest.MonkeyPatch.context() as patch:
        assert call(patch, *WORDS, out) == 0
    return out


@pytest.fixture
def good(trained: Path) -> bytes:
    return listed(trained / "checkpoints")[0].read_bytes()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "epoch=000001.ckpt"


def test_a_flipped_bit_is_noticed_or_harmless(good: bytes, path: Path) -> None:
    """Some bytes of a zip archive say nothing; no other one may be wrong without a word."""
    path.write_bytes(good)
    state, chance, noticed = read(path)["state_dict"], random.Random(0), 0
    for _ in range(150):
        raw = bytearray(good)
        raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
        path.write_bytes(raw)
        try:
            found = read(path)["state_dict"]
        except DamagedError:
            noticed += 1
        else:
            assert all(torch.equal(state[name], found[name]) for name in state)
    assert noticed > 75


@pytest.mark.parametrize("size", [0, 1, 500, 0.5, -1])
def test_a_file_that_is_cut_short(size: float, good: bytes, path: Path) -> None:
    path.write_bytes(good[: int(size * len(good)) if 0 < size < 1 else int(size)])
    with pytest.raises(DamagedError):
        read(path)


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.given = function, args

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.given


class Toucher:
    """Its pickle sets off code when it is built again, by a class of this module."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __setstate__(self, state: dict[str, str]) -> None:
        Path(state["path"]).touch()


HOSTILE: dict[str, Callable[[Path], Any]] = {
    "os.system": lambda canary: Call(os.system, f"touch {canary}"),
    "eval": lambda canary: Call(builtins.eval, f"__import__('os').mkdir({str(canary)!r})"),
    "exec": lambda canary: {"state_dict": Call(exec, f"import os; os.mkdir({str(canary)!r})")},
    "mkdir": lambda canary: {"odenet": [Call(os.mkdir, str(canary))]},
    "setstate": lambda canary: Toucher(str(canary)),
}


def archive(pickled: bytes, good: bytes, compression: int = zipfile.ZIP_STORED) -> bytes:
    """`good` with another pickle inside."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(good)) as old, zipfile.ZipFile(made, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, pickled if name.endswith("data.pkl") else old.read(name))
    return made.getvalue()


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_in_a_checkpoint_is_run(name: str, good: bytes, path: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    for protocol in (2, 4, 5):
        pickled = pickle.dumps(HOSTILE[name](canary), protocol)
        for raw in (pickled, archive(pickled, good), archive(pickled, good, zipfile.ZIP_DEFLATED)):
            path.write_bytes(raw)
            with pytest.raises(DamagedError) as error:
                read(path)
            assert str(error.value).isprintable() and not canary.exists()
    pickle.loads(pickle.dumps(HOSTILE[name](canary)))  # it does bite where it is let
    assert canary.exists()


@pytest.mark.parametrize("name", ["loops", "optimizer_states", "callbacks", "state_dict", "odenet", "epoch"])
def test_a_part_that_is_missing(name: str, good: bytes, path: Path) -> None:
    """Lightning would go on without some of them."""
    state = torch.load(io.BytesIO(good), weights_only=True)
    del state[name]
    torch.save(state, path)
    with pytest.raises(DamagedError, match="no training state"):
        read(path)


@pytest.mark.parametrize("state", [[1], torch.ones(2), "text", None, {}, {"odenet": 1}])
def test_another_thing_is_damaged(state: Any, path: Path) -> None:
    torch.save(state, path)
    with pytest.raises(DamagedError, match="no training state"):
        read(path)


def test_things_that_are_no_files(path: Path, good: bytes) -> None:
    path.mkdir()
    with pytest.raises(DamagedError, match="not a file"):
        read(path)
    path.rmdir()
    os.mkfifo(path)
    with pytest.raises(DamagedError, match="not a file"):
        read(path)
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(DamagedError, match="not a file"):
        read(path)
    path.unlink()
    with path.open("wb") as file:
        file.truncate(10**12)  # sparse
    with pytest.raises(DamagedError):
        read(path)
    path.with_name("epoch=000000.ckpt").write_bytes(good)
    found = newest(path.parent)
    assert found is not None and found[0].name == "epoch=000000.ckpt"


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state["state_dict"].popitem(),
        lambda state: state["state_dict"].update({"net.head.4.weight": torch.ones(3, 3)}),
        lambda state: state["optimizer_states"][0].clear(),
        lambda state: state["lr_schedulers"].__setitem__(0, 1),
    ],
)
def test_content_that_does_not_fit(
    change: Callable[[Any], Any],
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A checkpoint that can be read, of a training that is not at its end."""
    out = tmp_path / "run"
    (out / "checkpoints").mkdir(parents=True)
    (out / "settings.json").write_bytes((trained / "settings.json").read_bytes())
    first = listed(trained / "checkpoints")[-1]
    state = torch.load(first, weights_only=True)
    change(state)
    torch.save(state, out / "checkpoints" / first.name)
    refused([*WORDS, str(out), "--resume"], "cannot be taken up", monkeypatch, capsys)


def test_weights_of_another_net(trained: Path, tmp_path: Path) -> None:
    """Of safetensors, which holds tensors alone: damage, and weights that do not fit."""
    (tmp_path / "settings.json").write_bytes((trained / "settings.json").read_bytes())
    with pytest.raises(UserError, match=r"has no model\.safetensors: .* --resume"):
        odenet.train.load(tmp_path)
    weights = (trained / "model.safetensors").read_bytes()
    for raw in (b"", weights[:100], weights[:-4], weights.replace(b"head", b"tail"), pickle.dumps(weights)):
        (tmp_path / "model.safetensors").write_bytes(raw)
        with pytest.raises(UserError, match="do not give a net"):
            odenet.train.load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(weights)
    assert not odenet.train.load(str(tmp_path)).training
