"""Starts programs in several processes, as a user does, with limits that end a dead-lock."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]


def environment() -> dict[str, str]:
    """This process's, without what would make a program believe that it is one of several already."""
    several = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "TORCHELASTIC_RUN_ID")
    kept = {k: v for k, v in os.environ.items() if k not in several and not k.startswith("SLURM_")}
    return kept | {"OMP_NUM_THREADS": "1"}


def torchrun(
    program: Sequence[str | Path], folder: Path, processes: int = 2, limit: float = 200
) -> subprocess.CompletedProcess[str]:
    """The program in processes that know of each other, in the working directory `folder`."""
    return started([*TORCHRUN, "--nproc-per-node", str(processes), *map(str, program)], folder, limit)


def started(command: Sequence[str], folder: Path, limit: float = 200) -> subprocess.CompletedProcess[str]:
    """The command, to its end; after `limit` seconds it and all that it started are ended, which is a failure."""
    with subprocess.Popen(
        command, cwd=folder, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:  # fmt: skip
        try:
            out, err = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            process.terminate()  # torchrun ends its own, which are in sessions of theirs, by force after half a minute
            out, err = process.communicate(timeout=60)
            raise AssertionError(f"{command} took more than {limit} s\n{out[-2000:]}\n{err[-4000:]}") from None
    return subprocess.CompletedProcess(command, process.returncode, out, err)
