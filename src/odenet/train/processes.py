"""The processes of a run: Lightning starts them, or torchrun or Slurm has."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import distributed as dist

from .user_error import UserError


def first_process() -> bool:
    """Whether this is the only process of a run, or its first: the one that writes."""
    names = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")
    return all(os.environ.get(name, "0") in ("", "0") for name in names)


def device(name: str) -> str:
    """The device that --device asks for."""
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return "cuda" if there["cuda"] else "cpu"
    if name not in there:
        raise UserError(f"--device {name!r} is unknown. Known: cpu, cuda, mps, auto")
    if not there[name]:
        raise UserError(f"--device {name}: PyTorch finds none here; use --device cpu")
    return name


def trainer_options(name: str, devices: int | None, nodes: int | None) -> dict[str, Any]:
    """The options of Lightning's trainer for --device, --devices and --nodes."""
    kind, started = device(name), _started()
    if started is not None:
        for option, asked, there in zip(("--devices", "--nodes"), (devices, nodes), started, strict=True):
            if asked is not None and asked != there:
                raise UserError(f"{option} {asked}, but {there} are started: give that, or leave {option} out")
        devices, nodes = started
    elif (nodes or 1) > 1 and not {"MASTER_ADDR", "MASTER_PORT", "NODE_RANK"} <= os.environ.keys():
        raise UserError(f"--nodes {nodes}: needs MASTER_ADDR, MASTER_PORT and NODE_RANK, which torchrun and srun set")
    devices, nodes = devices or 1, nodes or 1
    if kind == "cuda" and devices > torch.cuda.device_count():
        raise UserError(f"--devices {devices}: PyTorch finds {torch.cuda.device_count()} CUDA GPU(s) here")
    return {"accelerator": kind, "devices": devices, "num_nodes": nodes}


def _started() -> tuple[int, int] | None:
    """How many processes on a machine and how many machines torchrun or Slurm has started, if one of them has."""
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    env = os.environ
    if TorchElasticEnvironment.detect():
        here = int(env["LOCAL_WORLD_SIZE"])
        return here, int(env["WORLD_SIZE"]) // here
    if SLURMEnvironment.detect():
        if int(env["SLURM_NTASKS"]) > 1 and "SLURM_NTASKS_PER_NODE" not in env:
            raise UserError("Slurm: give sbatch or srun --ntasks-per-node and --nodes instead of --ntasks")
        return int(env["SLURM_NTASKS"]) // int(env.get("SLURM_NNODES", "1")), int(env.get("SLURM_NNODES", "1"))
    return None


def together() -> bool:
    """Whether this process is in a group of several."""
    return dist.is_available() and dist.is_initialized()
