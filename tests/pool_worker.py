"""What a process of a pool runs, in a module that it can import: packages that are installed may have a `tests` too."""

from __future__ import annotations

from typing import Any

import torch

import odenet
from odenet.compat import torchdiffeq


def in_a_worker(task: str) -> Any:
    torch.set_num_threads(1)
    w = torch.tensor(1.0, requires_grad=True)
    if task == "fails":
        return odenet.solve(lambda t, y: y * y, torch.ones(1), [0.0, 2.0])
    if task == "drop-in":
        return torchdiffeq.odeint(lambda t, y: y * y, torch.ones(1), torch.tensor([0.0, 2.0]))
    return odenet.solve(lambda t, y: -w * y, torch.ones(2, 1), [0.0, 1.0], dense=True, per_sample=task == "samples")
