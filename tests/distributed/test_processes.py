"""Training in two processes that speak gloo: what one process gives, whatever number of steps each one takes.

The two are started once and do one check after another (`checks.py`); each is reported by itself.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distributed.checks import CHECKS
from distributed.launch import torchrun

WORKER = Path(__file__).parent / "worker.py"

# The rest are the same ways with the other gradients, and what takes long.
COMMON = [
    *(f"ddp: {name}" for name in ("discrete", "backprop", "adjoint", "solve")),
    *("fsdp2 layer: discrete", "fsdp2 layer: adjoint", "fsdp1 layer: discrete"),
    *(f"{wrap}: field refused" for wrap in ("ddp", "fsdp2", "fsdp1")),
    *("batch norm refused", "ddp: no length discrete", "ddp: failing samples discrete"),
    *("ddp: whole batch, joint", "ddp: accumulated", "ddp: static graph"),
]


def run(names: list[str], folder: Path, subtests: pytest.Subtests, limit: float) -> None:
    done = torchrun([WORKER, folder, *names], folder, limit=limit)
    found = [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]
    assert done.returncode == 0 and len(found) == 2, f"{found}\n{done.stderr[:4000]}"
    for name in names:
        with subtests.test(name):
            for rank, results in enumerate(found):
                failure = results.get(name, "it was not come to")
                assert not failure, f"process {rank}: {failure}"


def test_two_processes(tmp_path: Path, subtests: pytest.Subtests) -> None:
    run(COMMON, tmp_path, subtests, 150)


@pytest.mark.slow
def test_two_processes_every_gradient(tmp_path: Path, subtests: pytest.Subtests) -> None:
    run([name for name in CHECKS if name not in COMMON], tmp_path, subtests, 280)
