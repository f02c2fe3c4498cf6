"""Faults in a training run: a kill, a full disk, a signal, a second run, other data. It resumes to the same numbers.

Each fault strikes at a call of the system for a file; between two such calls nothing on the disk changes. Here every
tenth or so, and every single one in the slow test.
"""

from __future__ import annotations

import gzip
import os
import re
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from odenet.train import checkpoint, files, lock
from odenet.train.problems import UserError
from train.runs import Ended, Nursery, assert_same, command, environment, partial

WORDS = ("train", "resnet", "--quick", "--epochs", 3)
CALLS = 75  # for files, in a run of WORDS; `undisturbed` checks it


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as made:
        yield made


@pytest.fixture(scope="module")
def undisturbed(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    ended = nursery.run(folder, *WORDS, "--out", folder / "run")
    assert (ended.code, ended.calls) == (0, CALLS), ended.err
    return folder / "run"


def resumed(nursery: Nursery, scratch: Path, out: Path, *words: object) -> Ended:
    """Go on as the messages say: with --resume, or anew where nothing was begun."""
    ended = nursery.run(scratch, *(words or WORDS), "--out", out, "--resume")
    if ended.code == 2 and "holds no run; leave --resume out" in ended.err:
        ended = nursery.run(scratch, *(words or WORDS), "--out", out)
    assert ended.code == 0, ended.err
    return ended


def good_ones_stay(out: Path, undisturbed: Path) -> None:
    """Every checkpoint under a name of ours is whole, and one is there once an epoch has been saved."""
    for path in out.rglob("*.ckpt"):
        assert checkpoint.intact(path)
    metrics = out / "resnet" / "metrics.csv"
    if metrics.exists() and metrics.read_text().count("\n") > 2:  # in its second epoch, or later
        assert checkpoint.exists(out / "resnet")
    assert checkpoint.intact(undisturbed / "resnet" / "last.ckpt")


def fault(nursery: Nursery, undisturbed: Path, tmp_path: Path, kind: str, number: int) -> None:
    out = tmp_path / "run"
    ended = nursery.run(tmp_path, *WORDS, "--out", out, fault=kind, at=number)
    if kind == "kill":
        assert ended.code == -signal.SIGKILL
    elif kind == "stop":
        told = [line for line in ended.err.splitlines() if not line.startswith("ResNet: trained")]
        assert ended.code == 143 and len(told) == 1 and "interrupted" in told[0], ended.err
    else:
        told = [line for line in ended.err.splitlines() if not line.startswith("ResNet: trained")]
        assert ended.code == 2 and len(told) == 1 and told[0].startswith("odenet: "), ended.err
        assert "Traceback" not in ended.err
        assert os.strerror({"ENOSPC": 28, "EROFS": 30, "EIO": 5}[kind]) in told[0]
    if kind != "kill":
        assert not partial(out)
    good_ones_stay(out, undisturbed)
    resumed(nursery, tmp_path, out)
    assert_same(undisturbed, out)
    assert checkpoint.exists(out / "resnet") and not partial(out)


@pytest.mark.parametrize("number", [*range(1, CALLS + 1, 16), 30, 43])
def test_kill(number: int, nursery: Nursery, undisturbed: Path, tmp_path: Path) -> None:
    fault(nursery, undisturbed, tmp_path, "kill", number)


@pytest.mark.parametrize("number", [3, 10, 17, 29, 30])
def test_full_disk(number: int, nursery: Nursery, undisturbed: Path, tmp_path: Path) -> None:
    fault(nursery, undisturbed, tmp_path, "ENOSPC", number)


@pytest.mark.parametrize(("kind", "number"), [("EROFS", 1), ("EIO", 28)])
def test_disk_that_refuses(kind: str, number: int, nursery: Nursery, undisturbed: Path, tmp_path: Path) -> None:
    fault(nursery, undisturbed, tmp_path, kind, number)


@pytest.mark.parametrize("number", [1, 30, 60])
def test_stop(number: int, nursery: Nursery, undisturbed: Path, tmp_path: Path) -> None:
    """SIGTERM, and a second one on its heels."""
    fault(nursery, undisturbed, tmp_path, "stop", number)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", ["kill", "ENOSPC", "EIO", "stop"])
def test_every_moment(kind: str, nursery: Nursery, undisturbed: Path, tmp_path: Path) -> None:
    for number in range(1, CALLS + 1):
        (tmp_path / str(number)).mkdir()
        fault(nursery, undisturbed, tmp_path / str(number), kind, number)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_kill_between_the_nets(nursery: Nursery, tmp_path: Path) -> None:
    """`odenet compare`, killed at every seventh call: in each net's training, between them, in the figures."""
    words = ("compare", "digits", "--quick", "--epochs", 2)
    whole = nursery.run(tmp_path, *words, "--out", tmp_path / "whole")
    assert whole.code == 0, whole.err
    for number in range(1, whole.calls + 1, 7):
        out = tmp_path / str(number)
        assert nursery.run(tmp_path, *words, "--out", out, fault="kill", at=number).code == -signal.SIGKILL
        resumed(nursery, tmp_path, out, *words)
        assert_same(tmp_path / "whole", out)


@pytest.mark.parametrize("number", [0, 19, 20, 22])
def test_fall_back_and_kill(number: int, nursery: Nursery, undisturbed: Path, tmp_path: Path) -> None:
    """The last checkpoint is damaged; the run that goes on from the one before is killed while it replaces it."""
    out = tmp_path / "run"
    shutil.copytree(undisturbed, out)
    last, before = out / "resnet" / "last.ckpt", out / "resnet" / "previous.ckpt"
    raw = last.read_bytes()
    last.write_bytes(raw[:7000] + bytes(4096) + raw[11096:])
    if number:
        ended = nursery.run(tmp_path, *WORDS, "--out", out, "--resume", fault="kill", at=number)
        assert ended.code == -signal.SIGKILL and "previous.ckpt" in ended.err
        assert checkpoint.intact(before) or checkpoint.intact(last)
    ended = resumed(nursery, tmp_path, out)
    lines = [line for line in ended.err.splitlines() if line.startswith("odenet: ")]
    assert len(lines) <= 1 and ("is not usable" in lines[0] if not number else True), ended.err
    (out / "resnet" / "damaged.ckpt").unlink(missing_ok=True)
    assert_same(undisturbed, out)
    assert checkpoint.intact(before)


def test_other_files_are_not_believed(nursery: Nursery, undisturbed: Path, tmp_path: Path) -> None:
    """Whatever stands in the other files of a run: it is written anew, and nothing of it is run."""
    out = tmp_path / "run"
    shutil.copytree(undisturbed, out)
    planted = b"cos\nsystem\n(S'touch " + str(tmp_path / "canary").encode() + b"'\ntR."
    for path in out.rglob("*"):
        if path.is_file() and path.suffix != ".ckpt":
            path.write_bytes(planted)
    resumed(nursery, tmp_path, out)
    assert_same(undisturbed, out)
    assert not (tmp_path / "canary").exists()


def snapshot(folder: Path) -> dict[Path, tuple[bytes, int]]:
    return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}


def test_two_runs_in_one_folder(nursery: Nursery, undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(undisturbed, out)
    with lock.hold(out):
        before = snapshot(out)
        for words in ((), ("--resume",)):
            ended = nursery.run(tmp_path, *WORDS, "--out", out, *words)
            ended.one_line("another run is at work in this folder", str(out))
        assert snapshot(out) == before
    resumed(nursery, tmp_path, out)


@pytest.mark.parametrize("number", [16, 20])
def test_a_folder_that_is_removed(number: int, nursery: Nursery, tmp_path: Path) -> None:
    out = tmp_path / "run"
    nursery.run(tmp_path, *WORDS, "--out", out, fault=f"remove {out}", at=number).one_line("was removed", str(out))
    assert not out.exists() or not list(out.rglob("*.ckpt"))


def test_a_folder_that_is_replaced(tmp_path: Path) -> None:
    """Another run was started in the place of the folder: this one must not write into it."""
    out = tmp_path / "run"
    with lock.hold(out):
        files.write(out / "a", "mine")
        out.rename(tmp_path / "away")
        with lock.hold(tmp_path / "other"):
            (tmp_path / "other").rename(out)
            with pytest.raises(UserError, match="removed or replaced"):
                files.write(out / "a", "not mine")
    assert not (out / "a").exists()


def mnist(folder: Path) -> None:
    """Four files of MNIST's form, with few images."""
    chance = np.random.default_rng(0)
    folder.mkdir()
    for part, n in (("train", 1000), ("t10k", 70)):
        pixels = chance.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        labels = chance.integers(0, 10, n, dtype=np.uint8)
        images = struct.pack(">4I", 2051, n, 28, 28) + pixels.tobytes()
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images, 1))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 2049, n) + labels.tobytes())


def test_data_that_change(nursery: Nursery, tmp_path: Path) -> None:
    data = tmp_path / "data"
    mnist(data)
    words = ("train", "resnet", "--data", "mnist", "--data-dir", data, "--quick", "--epochs", 2)
    whole = nursery.run(tmp_path, *words, "--out", tmp_path / "whole")
    assert whole.code == 0, whole.err

    shutil.copytree(data, tmp_path / "copy")
    vanished = nursery.run(tmp_path, *words, "--out", tmp_path / "vanished", fault=f"remove {data}", at=8)
    assert vanished.code == 0, vanished.err  # all images are in memory
    assert_same(tmp_path / "whole", tmp_path / "vanished")
    shutil.copytree(tmp_path / "copy", data)

    out = tmp_path / "run"
    assert nursery.run(tmp_path, *words, "--out", out, fault="kill", at=24).code == -signal.SIGKILL
    assert checkpoint.exists(out / "resnet")
    labels = data / "t10k-labels-idx1-ubyte"
    right = labels.read_bytes()
    labels.write_bytes(right[:-30] + bytes([(right[-30] + 1) % 10]) + right[-29:])
    before = snapshot(out)
    nursery.run(tmp_path, *words, "--out", out, "--resume").one_line("other data", "mnist", "last.ckpt")
    assert snapshot(out) == before
    labels.write_bytes(right)
    resumed(nursery, tmp_path, out, *words)
    assert_same(tmp_path / "whole", out)


def test_interrupted_at_the_start() -> None:
    """Ctrl-C while torch is being imported: as soon as the program has set its handlers, which takes no time."""
    words = command("--help")
    words[2] = words[2].replace(
        "main()", "real = signal.signal; signal.signal = lambda *a: print(real(*a), flush=True); main()"
    )
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())
    assert process.stdout is not None
    for _ in ("SIGINT", "SIGTERM", "SIGHUP"):
        assert process.stdout.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out, err) == (130, "", "odenet: interrupted\n")


def test_interrupt_in_a_real_run(nursery: Nursery, undisturbed: Path, tmp_path: Path) -> None:
    """Ctrl-C twice, in a process that was started as a user starts it."""
    words = command(*WORDS, "--out", tmp_path / "run")
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment())
    while not (tmp_path / "run" / "settings.json").exists() and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130 and err.count("\n") == 1 and "go" in err and not partial(tmp_path), err
    resumed(nursery, tmp_path, tmp_path / "run")
    assert_same(undisturbed, tmp_path / "run")


def test_the_page_names_tests_that_exist() -> None:
    here = Path(__file__).parent
    page = (here.parent.parent / "docs" / "training.md").read_text()
    tests = "".join(path.read_text() for path in here.glob("test_*.py"))
    named = re.findall(r"`(test_\w+)(?:\[(\w+)\])?`", page)
    assert len(named) > 20
    for name, case in named:
        assert f"def {name}(" in tests and f'"{case}"' in tests + '""', (name, case)
