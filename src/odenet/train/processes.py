"""The processes of a run: which ones the options ask for, and how those on this machine are started and ended."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

from .errors import UserError

OURS = "odenet"  # stands in TORCHELASTIC_RUN_ID where `supervise` has started the processes
GRACE = 5.0  # seconds for a process that was told to end; one that waits within a library does not hear it
_LOST = ("Connection closed", "Connection reset", "Broken pipe", "connectFullMesh", "Timed out waiting", "NCCL")


@dataclass(frozen=True)
class Processes:
    """On each of `nodes` machines `devices` processes, each with a device of its own."""

    device: str = "cpu"
    devices: int = 1
    nodes: int = 1
    started: bool = True  # whether each is at work already

    @property
    def all(self) -> int:
        return self.devices * self.nodes

    def trainer_options(self) -> dict[str, Any]:
        """What Lightning's trainer is to be told."""
        from lightning.pytorch.strategies import DDPStrategy

        # without an exchange of buffers a forward pass without gradients waits for nobody
        strategy: Any = DDPStrategy(broadcast_buffers=False) if self.all > 1 else "auto"
        return {
            "accelerator": {"cuda": "gpu"}.get(self.device, self.device),
            "devices": self.devices,
            "num_nodes": self.nodes,
            "strategy": strategy,
            "use_distributed_sampler": False,
            "deterministic": self.device == "cpu",
        }


def first_process() -> bool:
    """Whether this is the only process of a run, or its first: the one that writes."""
    return all(os.environ.get(name, "0") in ("", "0") for name in ("RANK", "SLURM_PROCID"))


def supervised() -> bool:
    """Whether `supervise` has started this process."""
    return os.environ.get("TORCHELASTIC_RUN_ID") == OURS


def together() -> bool:
    """Whether this process is in a group of several."""
    return dist.is_available() and dist.is_initialized()


def device(name: str) -> str:
    """The device that --device asks for."""
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return "cuda" if there["cuda"] else "cpu"
    if name not in there:
        raise UserError(f"--device {name!r} is unknown: cpu, cuda, mps or auto")
    if not there[name]:
        raise UserError(f"--device {name}: PyTorch finds none here; use --device cpu")
    return name


def chosen(name: str, devices: int | None, nodes: int | None) -> Processes:
    """The processes that the options ask for; those of torchrun or Slurm where one of them has started this."""
    kind = device(name)
    launcher, started = _started()
    if started is not None:
        for option, asked, there in zip(("--devices", "--nodes"), (devices, nodes), started, strict=True):
            if asked is not None and asked != there:
                raise UserError(f"{option} {asked}, but {launcher} has started {there}: give that, or leave it out")
        devices, nodes = started
    elif (nodes or 1) > 1 and not all(name in os.environ for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK")):
        raise UserError(
            f"--nodes {nodes}: start the command on every machine with MASTER_ADDR, MASTER_PORT and NODE_RANK set, or "
            "by torchrun or srun, which set them"
        )
    found = Processes(kind, devices or 1, nodes or 1, started is not None)
    if kind == "cuda" and found.devices > torch.cuda.device_count():
        raise UserError(f"--devices {found.devices}: PyTorch finds {torch.cuda.device_count()} CUDA GPU(s) here")
    return found


def _started() -> tuple[str, tuple[int, int] | None]:
    """Who has started this process as one of several, and how many a machine and machines there are."""
    from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

    if TorchElasticEnvironment.detect():
        here = int(os.environ["LOCAL_WORLD_SIZE"])
        return "torchrun", (here, int(os.environ["WORLD_SIZE"]) // here)
    if SLURMEnvironment.detect():
        if int(os.environ["SLURM_NTASKS"]) > 1 and "SLURM_NTASKS_PER_NODE" not in os.environ:
            raise UserError("Slurm: give sbatch or srun --ntasks-per-node and --nodes instead of --ntasks")
        nodes = int(os.environ.get("SLURM_NNODES", "1"))
        return "Slurm", (int(os.environ["SLURM_NTASKS"]) // nodes, nodes)
    return "", None


def supervise(processes: Processes) -> int:
    """Run this command in so many processes, as torchrun would, and end all when one fails; gives the exit status.

    What the first process says goes where this one's words go; of the others only the reason of a failure is shown.
    """
    from torch.distributed.elastic.utils.distributed import get_free_port

    port = os.environ.get("MASTER_PORT") or str(get_free_port())
    machine = int(os.environ.get("NODE_RANK", "0"))
    shared = {
        "TORCHELASTIC_RUN_ID": OURS,
        "WORLD_SIZE": str(processes.all),
        "LOCAL_WORLD_SIZE": str(processes.devices),
        "GROUP_RANK": str(machine),
        "MASTER_ADDR": os.environ.get("MASTER_ADDR", "127.0.0.1"),
        "MASTER_PORT": port,
    }
    workers: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            for rank in range(processes.devices):
                own = {"LOCAL_RANK": str(rank), "RANK": str(machine * processes.devices + rank)}
                with (Path(folder) / str(rank)).open("wb") as words:
                    workers.append(
                        subprocess.Popen(
                            [sys.executable, "-m", "odenet_command", *sys.argv[1:]],
                            env=os.environ | shared | own,
                            stdout=None if rank == 0 else subprocess.DEVNULL,
                            stderr=None if rank == 0 else words,
                        )
                    )
            codes: list[int | None] = [None]
            while None in codes and not any(codes):
                time.sleep(0.05)
                codes = [worker.poll() for worker in workers]
        finally:
            end(workers)
        failed = next((rank for rank, code in enumerate(codes) if code), None)
        if failed is None:
            return 0
        code = codes[failed] or 0
        if failed and code > 0:
            sys.stderr.write((Path(folder) / str(failed)).read_text(errors="replace"))
        if code < 0:
            raise UserError(f"process {failed} of this run was ended by signal {-code}: go on with --resume")
        return code


def end(workers: list[subprocess.Popen[bytes]]) -> None:
    """Have the processes end, by force where they do not hear."""
    deadline = time.monotonic() + GRACE
    for worker in workers:
        worker.terminate()
    for worker in workers:
        with suppress(subprocess.TimeoutExpired):
            worker.wait(max(deadline - time.monotonic(), 0.0))
        worker.kill()
        worker.wait()


def lost(error: BaseException) -> bool:
    """Whether the error is what the end of another process looks like from here."""
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _LOST)
