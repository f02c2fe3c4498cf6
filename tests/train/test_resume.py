"""Faults in a training run: a kill, a full disk, a signal, a second run, damage. It resumes to the same numbers."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from odenet.train.files import locked
from slow_cases import slow_unless
from train.runs import Ended, ForkServer, assert_same, command, environment, partial, run

WORDS = ("train", "images", "--net", "resnet", "--quick", "--epochs", 3)


@pytest.fixture(scope="module")
def fork_server() -> Iterator[ForkServer]:
    with ForkServer() as made:
        yield made


@pytest.fixture(scope="module")
def undisturbed(fork_server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    ended = fork_server.run(folder, *WORDS, "--out", folder / "run")
    assert ended.code == 0, ended.err
    assert ended.calls > 20  # each of them is a moment to fail in
    return folder / "run"


@pytest.fixture
def out(undisturbed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(undisturbed, tmp_path / "run"))


def resumed(fork_server: ForkServer, scratch: Path, out: Path, *words: object) -> Ended:
    """Go on as the messages say: with --resume, or anew where nothing was begun."""
    ended = fork_server.run(scratch, *(words or WORDS), "--out", out, "--resume")
    if ended.code == 2 and "holds no run" in ended.err:
        ended = fork_server.run(scratch, *(words or WORDS), "--out", out)
    assert ended.code == 0, ended.err
    return ended


def fault(fork_server: ForkServer, undisturbed: Path, tmp_path: Path, kind: str, number: int) -> bool:
    """Whether the run has come so far as to meet the fault."""
    out = tmp_path / "run"
    ended = fork_server.run(tmp_path, *WORDS, "--out", out, fault=kind, at=number)
    if ended.calls < number:
        assert ended.code == 0, ended.err
        return False
    if kind == "kill":
        assert ended.code == -signal.SIGKILL
    elif kind == "stop":
        assert ended.code == 143 and ended.err.count("\n") == 1 and "interrupted" in ended.err, ended.err
    else:
        ended.one_line(os.strerror({"ENOSPC": 28, "EIO": 5}[kind]))
    assert kind == "kill" or not partial(out)
    resumed(fork_server, tmp_path, out)
    assert_same(undisturbed, out)
    return True


@pytest.mark.parametrize(
    ("kind", "number"),
    [
        *slow_unless((("kill", n) for n in (1, 2, 7, 8, 10, 13)), ("kill", 2), ("kill", 8), ("kill", 13)),
        *slow_unless((("ENOSPC", n) for n in (1, 6, 9)), ("ENOSPC", 6)),
        ("EIO", 8),
        *slow_unless([("stop", 2), ("stop", 9)], ("stop", 9)),
    ],
)
def test_fault(kind: str, number: int, fork_server: ForkServer, undisturbed: Path, tmp_path: Path) -> None:
    assert fault(fork_server, undisturbed, tmp_path, kind, number)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", ["kill", "ENOSPC", "stop"])
def test_every_moment(kind: str, fork_server: ForkServer, undisturbed: Path, tmp_path: Path) -> None:
    number, met = 0, True
    while met:
        number += 1
        (tmp_path / str(number)).mkdir()
        met = fault(fork_server, undisturbed, tmp_path / str(number), kind, number)
    assert number > 20


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_kill_between_the_nets(fork_server: ForkServer, tmp_path: Path) -> None:
    """`odenet compare`, killed in each net's training, between them, in the figures."""
    words = ("compare", "digits", "--quick", "--epochs", 2)
    whole = fork_server.run(tmp_path, *words, "--out", tmp_path / "whole")
    assert whole.code == 0, whole.err
    for number in range(1, whole.calls + 1, 9):
        out = tmp_path / str(number)
        assert fork_server.run(tmp_path, *words, "--out", out, fault="kill", at=number).code == -signal.SIGKILL
        resumed(fork_server, tmp_path, out, *words)
        assert_same(tmp_path / "whole", out)


def damage(path: Path) -> None:
    """One bit in the middle."""
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def test_falls_back_to_the_one_before(fork_server: ForkServer, undisturbed: Path, out: Path, tmp_path: Path) -> None:
    last = out / "checkpoints" / "epoch=000002.ckpt"
    damage(last)
    killed = fork_server.run(tmp_path, *WORDS, "--out", out, "--resume", fault="kill", at=3)
    assert killed.code == -signal.SIGKILL and f"{last} (" in killed.err and "going on from epoch=000001" in killed.err
    assert len(killed.err.splitlines()) == 1
    resumed(fork_server, tmp_path, out)
    assert_same(undisturbed, out)


def test_both_damaged(fork_server: ForkServer, out: Path, tmp_path: Path) -> None:
    for path in (out / "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:2000])
    fork_server.run(tmp_path, *WORDS, "--out", out, "--resume").one_line(
        "no usable checkpoint", "epoch=000001", "epoch=000002"
    )


def test_settings_need_not_be_given(fork_server: ForkServer, undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert fork_server.run(tmp_path, *WORDS, "--out", out, fault="kill", at=9).code == -signal.SIGKILL
    resumed(fork_server, tmp_path, out, "train", "images")
    assert_same(undisturbed, out)


def snapshot(folder: Path) -> dict[Path, tuple[bytes, int]]:
    """All files but what a killed run has left unfinished."""
    files = [p for p in folder.rglob("*") if p.is_file() and p.suffix != ".partial"]
    return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in files}


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("--resume", "--channels", 16), ("channels=8 (now 16)", "another --out")),
        (("--resume", "--seed", 1), ("seed=0 (now 1)",)),
        (("--resume", "--epochs", 4), ("epochs=3 (now 4)",)),
        ((), ("holds a run already", "--resume")),
    ],
)
def test_another_run_is_refused(
    words: tuple[object, ...], parts: tuple[str, ...], fork_server: ForkServer, out: Path, tmp_path: Path
) -> None:
    before = snapshot(out)
    fork_server.run(tmp_path, *WORDS, "--out", out, *words).one_line(*parts)
    assert snapshot(out) == before


def test_a_checkpoint_of_another_run(fork_server: ForkServer, out: Path, tmp_path: Path) -> None:
    """Settings that somebody has changed in the file do not pass for those that the weights were trained with."""
    given = json.loads((out / "settings.json").read_text())
    given["settings"]["lr"] = 0.25
    (out / "settings.json").write_text(json.dumps(given))
    fork_server.run(tmp_path, "train", "images", "--out", out, "--resume").one_line("of another run", "settings.json")


@pytest.mark.parametrize("content", ["", "[]", "{}", "\x00\xff", '{"task": 1, "settings": 2, "info": 3, "data": 4}'])
def test_settings_that_are_damaged(content: str, fork_server: ForkServer, out: Path, tmp_path: Path) -> None:
    (out / "settings.json").write_text(content)
    fork_server.run(tmp_path, "train", "images", "--out", out, "--resume").one_line("settings.json", "bring")


def test_data_that_change(fork_server: ForkServer, tmp_path: Path) -> None:
    import numpy as np

    data, out = tmp_path / "data.npz", tmp_path / "run"
    chance = np.random.default_rng(0)
    images, labels = chance.integers(0, 256, (90, 8, 8), dtype=np.uint8), np.arange(90) % 3
    np.savez(data, images=images, labels=labels)
    words = (*WORDS, "--data", data)
    assert fork_server.run(tmp_path, *words, "--out", tmp_path / "whole").code == 0
    assert fork_server.run(tmp_path, *words, "--out", out, fault="kill", at=9).code == -signal.SIGKILL
    images[3, 2, 1] ^= 1
    np.savez(data, images=images, labels=labels)
    # a file that the killed run was writing is removed by the next one, which then refuses
    before = {path: content for path, content in snapshot(out).items() if path.suffix != ".partial"}
    fork_server.run(tmp_path, *words, "--out", out, "--resume").one_line("other data", str(out))
    assert snapshot(out) == before
    images[3, 2, 1] ^= 1
    np.savez(data, images=images, labels=labels)
    resumed(fork_server, tmp_path, out, *words)
    assert_same(tmp_path / "whole", out)


def test_two_runs_in_one_folder(fork_server: ForkServer, out: Path, tmp_path: Path) -> None:
    with locked(out):
        before = snapshot(out)
        fork_server.run(tmp_path, *WORDS, "--out", out, "--resume").one_line("another run is at work", str(out))
        assert snapshot(out) == before
    resumed(fork_server, tmp_path, out)


def test_early_stop_is_the_end(fork_server: ForkServer, tmp_path: Path) -> None:
    """A run that stopped for want of progress is not taken up again, also where its results were not written yet."""
    words = (*WORDS[:-1], 40, "--lr", 1e-8)
    ended = fork_server.run(tmp_path, *words, "--out", tmp_path / "whole")
    assert ended.code == 0, ended.err
    epochs = json.loads((tmp_path / "whole" / "results.json").read_text())["epochs"]
    assert 20 < epochs < 40
    killed = fork_server.run(tmp_path, *words, "--out", tmp_path / "run", fault="kill", at=ended.calls - 6)
    assert killed.code == -signal.SIGKILL and not (tmp_path / "run" / "model.safetensors").exists()
    resumed(fork_server, tmp_path, tmp_path / "run", *words)
    assert_same(tmp_path / "whole", tmp_path / "run")


def test_ctrl_c_in_a_real_run(fork_server: ForkServer, undisturbed: Path, tmp_path: Path) -> None:
    """Twice, in a process that was started as a user starts it."""
    out = tmp_path / "run"
    process = subprocess.Popen(command(*WORDS, "--out", out), stderr=subprocess.PIPE, text=True, env=environment())
    while not (out / "settings.json").exists() and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130 and err.count("\n") == 1 and "--resume" in err and not partial(tmp_path), err
    resumed(fork_server, tmp_path, out)
    assert_same(undisturbed, out)


@pytest.mark.parametrize("limit", slow_unless([60, 30_000], 60))
def test_no_room_for_files(tmp_path: Path, limit: int) -> None:
    """The system refuses to write more than `limit` bytes: met by the log's thread, or by the checkpoint."""
    words = command(*WORDS, "--out", tmp_path / "run")
    words[2] = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n" + words[2]
    env = {k: v for k, v in environment().items() if not k.startswith("COVERAGE_")}
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env=env, check=False)
    Ended(done.returncode, done.stdout, done.stderr).one_line("File too large")
    assert not partial(tmp_path)


def _seed() -> int:
    return int.from_bytes(os.urandom(4), "little") if "ODENET_NEW_CASES" in os.environ else 20_261_129


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("words", [("train", "images", "--epochs", 4), ("compare", "digits")])
def test_stopped_at_random_moments(words: tuple[object, ...], tmp_path: Path) -> None:
    seed = _seed()
    print(f"seed {seed}")
    chance = random.Random(seed)
    start = time.perf_counter()
    assert run(*words, "--quick", "--out", tmp_path / "whole").code == 0
    longest = time.perf_counter() - start
    out = tmp_path / "run"
    for _ in range(8):
        resume = ["--resume"] if (out / "settings.json").exists() else []
        process = subprocess.Popen(
            command(*words, "--quick", "--out", out, *resume), stderr=subprocess.PIPE, text=True, env=environment()
        )
        wait, which = chance.uniform(0, longest), chance.choice((signal.SIGKILL, signal.SIGINT, signal.SIGTERM))
        time.sleep(wait)
        process.send_signal(which)
        _, err = process.communicate(timeout=120)
        print(f"{which.name} after {wait:.2f} s: exit {process.returncode} {err[-80:]!r}")
        assert process.returncode in (0, -which, 128 + which), err
    resume = ["--resume"] if (out / "settings.json").exists() else []
    last = run(*words, "--quick", "--out", out, *resume)
    assert last.code == 0, last.err
    assert_same(tmp_path / "whole", out)
