"""Real processes, stopped at random moments, some of them again after a resume. The seed is printed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from odenet.train import checkpoint
from train.runs import assert_same, command, environment, partial, run

SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _seed() -> int:
    return int.from_bytes(os.urandom(4), "little") if "ODENET_NEW_CASES" in os.environ else 20_261_126


def _once(words: list[str], chance: random.Random, longest: float, out: Path) -> bool:
    """Start the command and stop it at a random moment; whether it was through before."""
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())
    wait, which = chance.uniform(0, longest), chance.choice(SIGNALS)
    start = time.perf_counter()
    while process.poll() is None and time.perf_counter() - start < wait:
        time.sleep(0.001)
    process.send_signal(which)
    if which != signal.SIGKILL and chance.random() < 0.5:
        time.sleep(chance.uniform(0, 0.05))
        process.send_signal(which)  # an impatient second one
    _, err = process.communicate(timeout=120)
    told = [line for line in err.splitlines() if ": trained " not in line]
    print(f"{which.name} after {wait:.3f} s: exit {process.returncode}; {' | '.join(told)[:100]}")
    if process.returncode == 0:
        return True
    if process.returncode == 2:  # stopped before it began anything the last time
        assert "holds no run" in err, err
    elif which == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL, err
    elif told or process.returncode > 0:  # silent and negative: the interpreter had not started yet
        assert process.returncode == 128 + which and len(told) == 1 and "interrupted" in told[0], err
        assert not partial(out)
    for path in out.rglob("*.ckpt"):
        assert checkpoint.intact(path)
    return False


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "words", [("train", "resnet", "--epochs", 12), ("train", "odenet", "--epochs", 4), ("compare", "digits")]
)
def test_stopped_at_random_moments(words: tuple[object, ...], tmp_path: Path) -> None:
    seed = _seed()
    print(f"seed {seed}")
    chance = random.Random(seed)
    start = time.perf_counter()
    assert run(*words, "--quick", "--out", tmp_path / "whole").code == 0
    longest = time.perf_counter() - start
    stops = runs = 0
    while stops < 12:
        out, runs = tmp_path / f"run{runs}", runs + 1
        for _ in range(chance.randint(1, 3)):
            resume = ["--resume"] if out.exists() else []
            if _once(command(*words, "--quick", "--out", out, *resume), chance, longest, out):
                break
            stops += 1
        resume = ["--resume"] if out.exists() else []
        last = run(*words, "--quick", "--out", out, *resume)
        if last.code == 2 and "holds no run" in last.err:
            last = run(*words, "--quick", "--out", out)
        assert last.code == 0, last.err
        assert_same(tmp_path / "whole", out)
    print(f"{stops} stops in {runs} runs, all with the numbers of the undisturbed one")


@pytest.mark.slow
def test_two_at_once(tmp_path: Path) -> None:
    """Two processes that start together in one folder: one trains, the other is refused."""
    words = command("train", "resnet", "--quick", "--epochs", 3, "--out", tmp_path / "run")
    both = [
        subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())
        for _ in range(2)
    ]
    told = [process.communicate(timeout=120)[1] for process in both]
    codes = [process.returncode for process in both]
    assert sorted(codes) == [0, 2], told
    refusal = told[codes.index(2)]
    assert refusal.count("\n") == 1
    assert "another run is at work" in refusal or "holds a run already" in refusal  # the other had its lock, or its end
    assert run("train", "resnet", "--quick", "--epochs", 3, "--out", tmp_path / "whole").code == 0
    assert_same(tmp_path / "whole", tmp_path / "run")
