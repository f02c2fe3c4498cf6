"""Checkpoints: damage is noticed, the one before takes over, and nothing in a hostile one is run."""

from __future__ import annotations

import builtins
import copy
import hashlib
import io
import os
import pickle
import random
import shutil
import signal
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from command_line import call
from odenet.train import checkpoint, runner
from odenet.train.checkpoint import DamagedError, Origin
from odenet.train.data import ImageData, Split, load
from odenet.train.problems import UserError
from odenet.train.processes import Processes
from odenet.train.tasks import Settings

SETTINGS = Settings("digits", 2, 32, 8, 5e-3, 1e-2, 1e-2, "bosh3", 0, True)
ROOM = 2**26


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load("digits", None).small()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, data: ImageData) -> Path:
    out = tmp_path_factory.mktemp("trained")
    runner.train("resnet", data, SETTINGS, out, False, "cpu")
    return out


@pytest.fixture
def out(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def take_up(out: Path, data: ImageData) -> runner.Run:
    return runner.prepare("resnet", data, SETTINGS, out, True, Processes())


def refused(out: Path, data: ImageData, match: str) -> None:
    """Neither checkpoint can be taken up, the reason is one line, and no file has changed."""
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    with pytest.raises(UserError, match=match) as error:
        take_up(out, data)
    assert "\n" not in str(error.value) and len(str(error.value)) < 900
    assert before == {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}


def alone(out: Path) -> Path:
    """The last checkpoint, with none before it."""
    (out / "resnet" / checkpoint.BEFORE).unlink()
    return out / "resnet" / checkpoint.LAST


def test_any_damage_is_noticed(out: Path) -> None:
    path = out / "resnet" / checkpoint.LAST
    good = path.read_bytes()
    chance = random.Random(0)
    spoiled = []
    for _ in range(200):
        place = chance.randrange(len(good))
        spoiled.append(good[:place] + bytes([good[place] ^ 1 << chance.randrange(8)]) + good[place + 1 :])
    for place in range(len(good) - 110, len(good)):  # all of the archive's end and the digest
        spoiled.append(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
    for size in (0, 1, 500, len(good) // 2, len(good) - 1, *(chance.randrange(len(good)) for _ in range(30))):
        spoiled += [good[:size], good[:size] + bytes(len(good) - size)]  # cut short; the rest zeros
    spoiled += [good + b"x", good + good, b"x" + good]
    for raw in spoiled:
        path.write_bytes(raw)
        assert not checkpoint.intact(path)
        with pytest.raises(DamagedError):
            checkpoint.load(path, ROOM)
    path.write_bytes(good)
    assert checkpoint.intact(path)
    assert checkpoint.load(path, ROOM)["epoch"] == 1


def test_torch_opens_a_checkpoint(out: Path) -> None:
    """The digest stands in the comment of the archive, so a net can be taken from it without this library."""
    state = torch.load(out / "resnet" / checkpoint.LAST, weights_only=True)["state_dict"]
    assert sum(t.numel() for t in state.values()) > 1000


def test_falls_back_to_the_one_before(out: Path, data: ImageData) -> None:
    last = out / "resnet" / checkpoint.LAST
    last.write_bytes(last.read_bytes()[:-1000])
    found = take_up(out, data).found
    assert found is not None and found.state["epoch"] == 0
    assert found.note is not None and str(last) in found.note and "previous.ckpt" in found.note
    last.unlink()
    found = take_up(out, data).found
    assert found is not None and found.state["epoch"] == 0


def test_both_damaged(out: Path, data: ImageData) -> None:
    for path in (out / "resnet").glob("*.ckpt"):
        path.write_bytes(bytes(path.stat().st_size))
    refused(out, data, r"last\.ckpt .* and .*previous\.ckpt .*; bring a copy back, or delete last\.ckpt and previous")


def test_damage_never_takes_the_place_of_a_good_one(out: Path, data: ImageData) -> None:
    """A last one that goes bad while the run is at work is set aside, and the one before stays."""
    run, folder = take_up(out, data), out / "resnet"
    assert run.found is not None
    before = (folder / checkpoint.BEFORE).read_bytes()
    (folder / checkpoint.LAST).write_bytes(b"bad")
    keeper = checkpoint.Keeper()
    keeper.save_checkpoint(run.found.state, folder / checkpoint.LAST)
    assert checkpoint.intact(folder / checkpoint.LAST)
    assert (folder / checkpoint.BEFORE).read_bytes() == before
    assert (folder / checkpoint.DAMAGED).read_bytes() == b"bad"


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


def archive(pickled: bytes, good: bytes, compression: int = zipfile.ZIP_STORED) -> bytes:
    """`good` with another pickle inside, and a digest that is right."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(good)) as old, zipfile.ZipFile(made, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, pickled if name.endswith("data.pkl") else old.read(name))
    return sealed(made.getvalue())


def sealed(raw: bytes) -> bytes:
    """As `checkpoint.sealed`, of any archive."""
    body = raw[:-2] + (14 + 64).to_bytes(2, "little")
    return body + b"odenet sha256 " + hashlib.sha256(body).hexdigest().encode()


HOSTILE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "os.system": (lambda canary: Call(os.system, f"touch {canary}"), "system, which was not run"),
    "eval": (lambda canary: Call(builtins.eval, f"__import__('os').mkdir({str(canary)!r})"), "eval, which was not run"),
    "exec": (
        lambda canary: {"state_dict": Call(exec, f"import os; os.mkdir({str(canary)!r})")},
        "exec, which was not run",
    ),
    "mkdir": (lambda canary: {"odenet": [Call(os.mkdir, str(canary))]}, "mkdir, which was not run"),
    "setstate": (lambda canary: Toucher(str(canary)), "Toucher"),
    "getattr": (lambda canary: Call(getattr, Path(canary), "touch"), "getattr, which was not run"),
    "bytearray": (lambda _: Call(bytearray, 10**12), "bytearray, which was not run"),
    "deserialise": (lambda canary: Call(torch.load, str(canary)), "load, which was not run"),
}


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_in_a_hostile_checkpoint_is_run(
    name: str, protocol: int, out: Path, data: ImageData, tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    make, words = HOSTILE[name]
    pickled = pickle.dumps(make(canary), protocol)
    last = alone(out)
    good = last.read_bytes()
    last.write_bytes(archive(pickled, good))
    refused(out, data, words if protocol == 2 else "was not run")
    for raw in (pickled, sealed(pickled), archive(pickled, good)[:-80], archive(pickled, good, zipfile.ZIP_DEFLATED)):
        last.write_bytes(raw)
        refused(out, data, "not a usable checkpoint")
    assert not canary.exists()
    if name in ("os.system", "eval", "exec", "mkdir", "setstate"):  # they do bite where they are let
        pickle.loads(pickled)
        assert canary.exists()


def test_a_hostile_one_yields_to_the_good_one_before(out: Path, data: ImageData, tmp_path: Path) -> None:
    last = out / "resnet" / checkpoint.LAST
    last.write_bytes(archive(pickle.dumps(Call(os.system, f"touch {tmp_path / 'canary'}"), 2), last.read_bytes()))
    found = take_up(out, data).found
    assert found is not None and found.path.name == checkpoint.BEFORE and "system" in str(found.note)
    assert not (tmp_path / "canary").exists()


def at(state: Any, *keys: Any) -> Any:
    for key in keys:
        state = state[key]
    return state


def put(*keys: Any, value: Any) -> Callable[[Any], None]:
    return lambda state: at(state, *keys[:-1]).__setitem__(keys[-1], value)


def drop(*keys: Any) -> Callable[[Any], None]:
    return lambda state: at(state, *keys[:-1]).__delitem__(keys[-1])


WEIGHT = "net.head.4.weight"
OPTIMIZER, SCHEDULE = ("optimizer_states", 0), ("lr_schedulers", 0)
WRONG: dict[str, tuple[Callable[[Any], None], str]] = {
    "no weights": (drop("state_dict"), "lacks 'state_dict'"),
    "a weight is missing": (drop("state_dict", WEIGHT), f"lacks '{WEIGHT}'"),
    "a weight too many": (put("state_dict", "x", value=torch.ones(2)), "has 'x'"),
    "shape of a weight": (put("state_dict", WEIGHT, value=torch.ones(3, 3)), r"shape \(3, 3\)"),
    "huge shape": (put("state_dict", WEIGHT, value=torch.ones(1).expand(2**40)), "1099511627776"),
    "dtype of a weight": (put("state_dict", WEIGHT, value=torch.ones(10, 8).double()), "float64"),
    "a weight is text": (put("state_dict", WEIGHT, value="x"), "of type str"),
    "a sparse weight": (put("state_dict", WEIGHT, value=torch.ones(10, 8).to_sparse()), "not run"),
    "a weight without values": (put("state_dict", WEIGHT, value=torch.empty(10, 8, device="meta")), "not run"),
    "no optimizer": (put("optimizer_states", value=[]), "optimizer_states"),
    "shape of a moment": (put(*OPTIMIZER, "state", 0, "exp_avg", value=torch.ones(1)), "exp_avg has shape"),
    "no moment": (drop(*OPTIMIZER, "state", 0), "lacks 0"),
    "a step is text": (put(*OPTIMIZER, "state", 0, "step", value="x"), "step is of type str"),
    "a rate is text": (put(*OPTIMIZER, "param_groups", 0, "lr", value="x"), "lr is of type str"),
    "betas": (put(*OPTIMIZER, "param_groups", 0, "betas", value=(0.9,)), "betas is of type tuple"),
    "schedule has a method": (put(*SCHEDULE, "step", value=1), "has 'step'"),
    "schedule": (put("lr_schedulers", value={}), "lr_schedulers is of type dict"),
    "loops": (drop("loops", "fit_loop", "epoch_progress"), "lacks 'epoch_progress'"),
    "a count is text": (put("loops", "fit_loop", "epoch_progress", "total", "ready", value="1"), "ready is of type"),
    "a huge count": (put("global_step", value=10**30), "global_step"),
    "callbacks": (drop("callbacks", "History"), "lacks 'History'"),
    "rows": (put("callbacks", "History", "rows", value=[{"epoch": 0}]), "a row without"),
    "a row is no number": (put("callbacks", "History", "rows", 0, "epoch", value="0"), "not a number"),
    "many rows": (put("callbacks", "History", "rows", value=[{"epoch": 0, "val_error": 0.0}] * 9), "at most 2"),
    "no origin": (drop("odenet"), "lacks 'odenet'"),
    "origin is a list": (put("odenet", value=[1]), "odenet is of type list"),
    "a setting is a tensor": (put("odenet", "settings", "lr", value=torch.ones(2)), "lr is of type Tensor"),
    "no settings": (put("odenet", "settings", value={}), "lacks 'data'"),
    "ended is text": (put("odenet", "ended", value="no"), "ended is of type str"),
    "without the data": (drop("odenet", "data"), "older version"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_content_is_refused(name: str, out: Path, data: ImageData) -> None:
    change, words = WRONG[name]
    last = alone(out)
    state = copy.deepcopy(checkpoint.load(last, ROOM))
    change(state)
    last.write_bytes(checkpoint.sealed(state))
    refused(out, data, words)


def test_a_name_cannot_reach_the_terminal(out: Path, data: ImageData) -> None:
    """Control characters in a hostile file are not printed."""
    last = alone(out)
    last.write_bytes(archive(b"\x80\x02cos\nsystem\x1b[2J\x07\n.", last.read_bytes()))
    refused(out, data, r"system\?\[2J\?, which was not run")


@pytest.mark.parametrize("state", [[1], torch.ones(2), "text", None, {}])
def test_another_thing_is_refused(state: Any, out: Path, data: ImageData) -> None:
    alone(out).write_bytes(checkpoint.sealed(state))
    refused(out, data, "not a usable checkpoint")


def test_numbers_that_lie_about_sizes(out: Path, data: ImageData) -> None:
    """A pickle that claims more elements than its record has."""
    last = alone(out)
    good = last.read_bytes()
    with zipfile.ZipFile(io.BytesIO(good)) as file:
        pickled = next(file.read(n) for n in file.namelist() if n.endswith("data.pkl"))
    weight = (72).to_bytes(1, "little")  # 8 x 1 x 3 x 3: the first weight's storage
    assert pickled.count(b"K" + weight) >= 1
    last.write_bytes(archive(pickled.replace(b"K" + weight, b"J" + (2**31 - 1).to_bytes(4, "little"), 1), good))
    refused(out, data, "not a usable checkpoint")


def test_an_older_checkpoint(out: Path, data: ImageData) -> None:
    """torch.save without a digest, as odenet wrote it first."""
    last = alone(out)
    torch.save(torch.load(last, weights_only=True), last)
    refused(out, data, "saved by an older version")


def test_things_that_are_no_files(out: Path, data: ImageData) -> None:
    last = alone(out)
    with last.open("r+b") as file:
        file.truncate(10**12)  # sparse
    with pytest.raises(UserError, match="has 1000000000000 bytes"):
        take_up(out, data)
    last.unlink()
    last.mkdir()
    refused(out, data, "it is not a file")
    last.rmdir()
    os.mkfifo(last)
    refused(out, data, "it is not a file")
    last.unlink()
    last.symlink_to("nowhere")
    refused(out, data, "cannot be read")
    last.unlink()
    last.symlink_to("/dev/zero")
    refused(out, data, "it is not a file")


def test_other_settings_and_other_data(out: Path, data: ImageData) -> None:
    last = out / "resnet" / checkpoint.LAST
    origin = Origin("resnet", SETTINGS, data.fingerprint)
    own = checkpoint.load(last, ROOM)["odenet"]
    origin.refuse_other(last, own)
    with pytest.raises(UserError, match=r"other settings: lr=0\.005 \(now 0\.1\)"):
        replace(origin, settings=replace(SETTINGS, lr=0.1)).refuse_other(last, own)
    with pytest.raises(UserError, match=r"net 'resnet' \(now 'odenet'\)"):
        replace(origin, kind="odenet").refuse_other(last, own)
    wider = replace(SETTINGS, channels=2 * SETTINGS.channels)
    with pytest.raises(UserError, match=r"other settings: channels=\d+ \(now \d+\)"):  # its weights have other shapes
        runner.prepare("resnet", data, wider, out, True, Processes())
    labels = data.test.labels.clone()
    labels[3] = (labels[3] + 1) % 10
    refused(out, replace(data, test=Split(data.test.images, labels)), "other data")


def test_sigterm_is_not_handled_by_lightning(tmp_path: Path, data: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning's handler waits for all processes, wherever it is called."""
    seen: list[Any] = []

    def look(self: Any, batch: Any, number: int) -> None:
        seen.append(signal.getsignal(signal.SIGTERM))

    monkeypatch.setattr(runner.Task, "on_train_batch_start", look)
    before = signal.getsignal(signal.SIGTERM)
    runner.train("resnet", data, replace(SETTINGS, epochs=1), tmp_path, False, "cpu")
    assert seen and all(handler is before for handler in seen)


@pytest.mark.parametrize(("name", "now", "other"), [("channels", 32, 8), ("epochs", 1, 2), ("per_sample", True, False)])
def test_another_setting_is_named(name: str, now: int, other: int, out: Path, data: ImageData) -> None:
    """Also one that gives the net or the metrics another form: nobody is told to delete a good checkpoint."""
    with pytest.raises(UserError, match=rf"other settings: {name}={other} \(now {now}\)") as error:
        runner.prepare("resnet", data, replace(SETTINGS, **{name: now}), out, True, Processes())
    assert "delete" not in str(error.value)


def test_another_net_of_much_less_room(out: Path, data: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint that is too large to be read may be of many channels."""
    load = checkpoint.load
    monkeypatch.setattr(checkpoint, "load", lambda path, largest: load(path, 1000))
    with pytest.raises(UserError, match="--channels") as error:
        take_up(out, data)
    assert "delete" not in str(error.value)


def test_fingerprint(data: ImageData) -> None:
    assert data.fingerprint == load("digits", None).small().fingerprint != load("digits", None).fingerprint
    images = data.train.images.clone()
    images[0, 0, 0, 0] += 1e-6
    assert replace(data, train=Split(images, data.train.labels)).fingerprint != data.fingerprint
    assert replace(data, shift=0).fingerprint != data.fingerprint


def test_refused_resume_leaves_the_settings(
    out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (out / "settings.json").write_text("those of the run")
    words = ("train", "resnet", "--quick", "--epochs", "2", "--out", out, "--resume")
    assert call(monkeypatch, *words, "--lr", "0.5") == 2
    assert "other settings" in capsys.readouterr().err
    assert (out / "settings.json").read_text() == "those of the run"


def test_saved_before_per_sample_steps(out: Path, data: ImageData) -> None:
    """A checkpoint without the setting is of a run without such steps, and of no other."""
    path = out / "resnet" / checkpoint.LAST
    state = checkpoint.load(path, ROOM)
    del state["odenet"]["settings"]["per_sample"]
    path.write_bytes(checkpoint.sealed(state))
    found = take_up(out, data).found
    assert found is not None and found.path == path
    with pytest.raises(UserError, match=r"per_sample=False \(now True\)"):
        runner.prepare("resnet", data, replace(SETTINGS, per_sample=True), out, True, Processes())
