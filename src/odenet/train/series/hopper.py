"""Motions of the hopper of dm-control, falling and rolling from random states.

Rubanova et al. 2019, "Latent ODEs for irregularly-sampled time series", section 4.2: 200 steps of 14 values, positions
and velocities of the model "hopper" in the Control Suite. Made here, and kept in
a file, so that later runs need no dm-control.
"""

from __future__ import annotations

import importlib
import io
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...series import Series
from ..files import write
from ..user_error import UserError, first_line

ROWS, CHANNELS, SEED = 200, 14, 123
COUNT = 10_000


def hopper(count: int, folder: str) -> Series:
    """The first `count` motions, at times 0, 1, ..., 199. folder: where the file is, or is written.

    Raises UserError where there is no file, and dm-control is not installed to make it.
    """
    path = (Path(folder) if folder else _cache()) / f"hopper-{count}.pt"
    if path.is_file():
        try:
            x = torch.load(path, weights_only=True)
        except Exception as error:  # torch tells of damage by many types
            raise UserError(f"{path} cannot be read ({first_line(error)}): delete it, it is made again") from None
        if not isinstance(x, Tensor) or x.shape != (count, ROWS, CHANNELS) or not x.is_floating_point():
            raise UserError(f"{path} is not ({count}, {ROWS}, {CHANNELS}) numbers: delete it, it is made again")
    else:
        x = generate(count)
        buffer = io.BytesIO()
        torch.save(x, buffer)
        write(path, buffer.getvalue())
    return Series(torch.arange(ROWS, dtype=torch.float32), x.float(), channels=_names())


def generate(count: int) -> Tensor:
    """Motions from the published random states, (count, 200, 14): three seconds for a thousand."""
    os.environ.setdefault("MUJOCO_GL", "disable")  # physics alone, no window
    try:
        suite: Any = importlib.import_module("dm_control.suite")
        numpy: Any = importlib.import_module("numpy")
    except ImportError:
        raise UserError('hopper is made by dm-control, which is missing: pip install "torch-odenet[hopper]"') from None
    physics: Any = suite.load("hopper", "stand").physics
    chance = numpy.random.RandomState(SEED)
    x = torch.empty(count, ROWS, CHANNELS)
    for i in range(count):
        with physics.reset_context():
            size = physics.data.qpos.size
            physics.data.qpos[:2] = chance.uniform(0.0, 0.5, size=2)
            physics.data.qpos[2:] = chance.uniform(-2.0, 2.0, size=size - 2)
            physics.data.qvel[:] = chance.uniform(-5.0, 5.0, size=physics.data.qvel.size)
        for t in range(ROWS):
            state = numpy.concatenate([physics.data.qpos, physics.data.qvel])
            x[i, t] = torch.from_numpy(state)
            physics.step()
    return x


def _names() -> tuple[str, ...]:
    joints = ("rootx", "rootz", "rooty", "waist", "hip", "knee", "ankle")
    return (*joints, *(f"{joint} velocity" for joint in joints))


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "odenet"
