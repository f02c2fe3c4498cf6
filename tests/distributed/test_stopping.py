"""Runs in two processes that are stopped, or lose one: all end soon, files are whole, and the run can go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from distributed.launch import environment, started
from train.runs import PROGRAM, assert_same, partial

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the second process by /proc")

LIMIT = 120.0
SOON = 30.0  # a few seconds, on a machine that has much else to do


def second(first: int) -> int | None:
    """The process that the first one has started."""
    try:
        found = Path(f"/proc/{first}/task/{first}/children").read_text().split()
    except OSError:
        return None
    return int(found[0]) if found else None


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def program(folder: Path) -> list[str]:
    """A script, since Lightning starts the same file again for the second process."""
    file = folder / "program.py"
    file.write_text(PROGRAM)
    return [sys.executable, str(file)]


def stop(folder: Path, words: list[str], moment: Callable[[int], bool], who: str, signum: int) -> tuple[int, str]:
    """Start `odenet words`, send the signal at the moment; exit status and stderr, when no process is left."""
    with subprocess.Popen(
        [*program(folder), *words], cwd=folder, env=environment(), text=True, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            start = time.monotonic()
            while not moment(process.pid):
                assert process.poll() is None and time.monotonic() - start < LIMIT
                time.sleep(0.002)
            other = second(process.pid)
            assert other is not None
            sent = time.monotonic()
            if who == "all":
                os.killpg(process.pid, signum)
            else:
                os.kill(process.pid if who == "first" else other, signum)
            _, err = process.communicate(timeout=LIMIT)
            while alive(process.pid) and time.monotonic() - sent < LIMIT:
                time.sleep(0.01)
            assert time.monotonic() - sent < SOON
            return process.returncode, err
        finally:
            if alive(process.pid):
                os.killpg(process.pid, signal.SIGKILL)


WORDS = ["train", "images", "--net", "resnet", "--quick", "--epochs", "5", "--devices", "2", "--out", "run"]


def after_epochs(folder: Path, epochs: int) -> Callable[[int], bool]:
    file = folder / "run" / "metrics.csv"
    return lambda _: file.exists() and file.read_text().count("\n") > epochs


def after_start(seconds: float) -> Callable[[int], bool]:
    """So long after the second process is there. It is at its imports for some, and the first waits for it."""
    since: list[float] = []

    def now(first: int) -> bool:
        if second(first) is not None and not since:
            since.append(time.monotonic())
        return bool(since) and time.monotonic() - since[0] >= seconds

    return now


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_resumes_after_any(tmp_path: Path) -> None:
    whole = started([*program(tmp_path), *WORDS[:-1], "whole"], tmp_path)
    assert whole.returncode == 0, whole.stderr
    for who, signum in (("first", signal.SIGTERM), ("all", signal.SIGINT), ("second", signal.SIGKILL)):
        for epochs in (1, 3):
            folder = tmp_path / f"{who}{epochs}"
            folder.mkdir()
            code, err = stop(folder, WORDS, after_epochs(folder, epochs), who, signum)
            assert code != 0 and not partial(folder)
            if who != "second":
                assert code == 128 + signum and err.count("odenet: interrupted") == 1, (who, epochs, err)
            done = started([*program(folder), *WORDS, "--resume"], folder)
            assert done.returncode == 0, done.stderr
            assert_same(tmp_path / "whole", folder / "run")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("who", "signum", "seconds"),
    [
        ("all", signal.SIGINT, 0.0),
        *(
            (who, signum, seconds)
            for who, signum in [("all", signal.SIGINT), ("all", signal.SIGTERM), ("second", signal.SIGKILL)]
            for seconds in (0.5, 4.0)
        ),
    ],
)
def test_at_the_start(who: str, signum: int, seconds: float, tmp_path: Path) -> None:
    """The first process waits for the second within a library then."""
    words = [*WORDS[:-5], "200", *WORDS[-4:]]
    code, _ = stop(tmp_path, words, after_start(seconds), who, signum)
    assert code != 0 and not partial(tmp_path)
