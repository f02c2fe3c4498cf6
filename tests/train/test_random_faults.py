"""Real processes, stopped at random moments, again and again until the run is through. The seed is printed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from odenet.train import checkpoint
from train.runs import assert_same, command, environment, partial, run

SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGINT, signal.SIGTERM)


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
    told = [line for line in err.splitlines() if "trained in" not in line]
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
    longest = 1.1 * (time.perf_counter() - start)
    stops = 0
    for number in range(1000):
        out, stopped = tmp_path / f"run{number}", 0
        program = [sys.executable, "-c", "from odenet_command import main; main()"]
        rest = [*command(*words, "--quick", "--out", out)[3:]]
        while not _once([*program, *rest, *(["--resume"] if out.exists() else [])], chance, longest, out):
            stopped += 1
        stops += stopped
        again = run(*words, "--quick", "--out", out, "--resume")
        assert again.code == 0, again.err
        assert_same(tmp_path / "whole", out)
        if stops >= 12:
            break
    print(f"{stops} stops in {number + 1} runs")
