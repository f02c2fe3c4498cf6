"""Training in several processes: who they are, what each takes of a batch, and what goes wrong between them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed as dist

from . import children
from .problems import UserError


@dataclass(frozen=True)
class Part:
    """What process number `index` of `of` takes: `rows` of n, sizes differ by one at most."""

    index: int = 0
    of: int = 1

    def rows(self, n: int) -> slice:
        return slice(n * self.index // self.of, n * (self.index + 1) // self.of)


@dataclass(frozen=True)
class Processes:
    """On each of `nodes` machines `devices` processes, each with a device of its own ("cpu" or "cuda")."""

    device: str = "cpu"
    devices: int = 1
    nodes: int = 1

    @property
    def all(self) -> int:
        return self.devices * self.nodes

    def trainer_options(self) -> dict[str, Any]:
        """What Lightning's trainer is to be told. Gradients are summed: see `Batches.weight`."""
        from .summed import Summed

        return {
            "accelerator": {"cpu": "cpu", "cuda": "gpu"}.get(self.device, self.device),
            "devices": self.devices,
            "num_nodes": self.nodes,
            "strategy": Summed() if self.all > 1 else "auto",
            "use_distributed_sampler": False,
        }

    def check_batch(self, batch_size: int) -> None:
        if batch_size < self.all:
            raise UserError(
                f"--batch-size {batch_size} is less than the {self.all} processes of --devices {self.devices} --nodes "
                f"{self.nodes}: each takes a part of every batch; raise it, or take fewer"
            )


def check_device(device: str) -> None:
    if device not in ("cpu", "cuda"):
        raise UserError(f"--device {device!r} is unknown: cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch finds no CUDA GPU here; use --device cpu")


def chosen(device: str, devices: int | None, nodes: int | None) -> Processes:
    """The processes that the options ask for; those of torchrun or Slurm where one of them has started this."""
    check_device(device)
    for name, count in (("--devices", devices), ("--nodes", nodes)):
        if count is not None and count < 1:
            raise UserError(f"{name} {count}: at least 1 is needed")
    launcher, started = _started()
    if started is not None:
        for name, asked, there in zip(("--devices", "--nodes"), (devices, nodes), started, strict=True):
            if asked is not None and asked != there:
                raise UserError(f"{name} {asked}, but {launcher} has started {there}: give that, or leave {name} out")
        devices, nodes = started
    elif (nodes or 1) > 1 and not all(name in os.environ for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK")):
        raise UserError(
            f"--nodes {nodes}: start the command on every machine with MASTER_ADDR, MASTER_PORT and NODE_RANK set, or "
            "by torchrun or srun, which set them"
        )
    found = Processes(device, devices or 1, nodes or 1)
    if device == "cuda" and found.devices > torch.cuda.device_count():
        raise UserError(f"--devices {found.devices}: PyTorch finds {torch.cuda.device_count()} CUDA GPU(s) here")
    return found


def _started() -> tuple[str, tuple[int, int] | None]:
    """Who has started this process as one of several, and how many a machine and machines there are."""
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    if TorchElasticEnvironment.detect():
        here = int(os.environ["LOCAL_WORLD_SIZE"])
        return "torchrun", (here, int(os.environ["WORLD_SIZE"]) // here)
    if SLURMEnvironment.detect():
        if int(os.environ["SLURM_NTASKS"]) > 1 and "SLURM_NTASKS_PER_NODE" not in os.environ:
            raise UserError("Slurm: give sbatch or srun --ntasks-per-node and --nodes instead of --ntasks")
        nodes = int(os.environ.get("SLURM_NNODES", "1"))
        return "Slurm", (int(os.environ["SLURM_NTASKS"]) // nodes, nodes)
    return "", None


_LOST = ("Connection closed", "Connection reset", "Broken pipe", "connectFullMesh", "Timed out waiting", "NCCL")
_SETTLE = 1.0  # seconds in which a signal may come that ended the other process, or that it sends before its end


@contextmanager
def together(processes: Processes, how_to_go_on: Callable[[], str]) -> Iterator[None]:
    """An end of another process, met in the midst of an exchange, in one line; that process says what it died of."""

    def lost() -> str:
        return f"another process of this run has ended, or cannot be reached: {how_to_go_on()}"

    with children.needed(lost):
        try:
            yield
        except RuntimeError as error:
            if processes.all == 1 or not _is_loss(error):
                raise
            if "EADDRINUSE" in str(error):
                port = os.environ.get("MASTER_PORT", "")
                raise UserError(f"MASTER_PORT={port} is in use by another program: choose another port") from None
            time.sleep(_SETTLE)
            raise UserError(lost()) from None


def _is_loss(error: RuntimeError) -> bool:
    gone = (dist.DistNetworkError, dist.DistStoreError) if dist.is_available() else ()
    return isinstance(error, gone) or any(words in str(error) for words in _LOST)
