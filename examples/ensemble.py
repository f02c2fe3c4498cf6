"""An ensemble of Lorenz systems, spread over processes: each solves its part, the first one gathers.

Alone, `python examples/ensemble.py`, or in any number of processes on any number of machines:
`torchrun --nproc-per-node 2 examples/ensemble.py`. Members are solved per sample, each with its own steps, so that
the numbers do not depend on who solved which.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

import odenet


def lorenz(t: Tensor, y: Tensor, rho: Tensor) -> Tensor:
    """y: (B, 3). rho: (B,), a parameter of each member."""
    x, v, z = y.unbind(-1)
    return torch.stack([10 * (v - x), x * (rho - z) - v, x * v - 8 / 3 * z], -1)


def members(count: int) -> tuple[Tensor, Tensor]:
    """Initial states and parameters of all members: every process makes the same, and takes its rows."""
    draw = torch.Generator().manual_seed(0)
    y0 = torch.randn(count, 3, generator=draw, dtype=torch.float64)
    return y0, torch.linspace(1.0, 28.0, count, dtype=torch.float64)


def solve(y0: Tensor, rho: Tensor) -> tuple[Tensor, Tensor]:
    """States at the end (B, 3), and evaluations of each member (B,)."""
    sol = odenet.solve(lorenz, y0, [0.0, 5.0], args=(rho,), per_sample=True, rtol=1e-8, atol=1e-8)
    return sol.y1, sol.stats.nfe


def gathered(part: Tensor) -> Tensor | None:
    """What all processes have, one after another, in the first of them; None in the others. Lengths may differ."""
    if not dist.is_initialized():
        return part
    parts: list[Tensor] | None = [part] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(part, parts)
    return None if parts is None else torch.cat(parts)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--members", type=int, default=101)
    options.add_argument("--out", type=Path, help="where to save the states and the evaluations")
    given = options.parse_args()
    if dist.is_torchelastic_launched():
        dist.init_process_group("gloo")  # results are gathered from the host's memory, also where GPUs solve
    rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    y0, rho = members(given.members)
    mine = slice(rank, None, size)  # every size-th: members with a large rho take more steps, and lie at the end
    y1, nfe = solve(y0[mine], rho[mine])
    states, counts, places = gathered(y1), gathered(nfe), gathered(torch.arange(given.members)[mine])
    if states is not None and counts is not None and places is not None:
        order = places.argsort()
        states, counts = states[order], counts[order]
        print(f"{given.members} members in {size} process(es): mean of |y| {states.norm(dim=1).mean():.12f}")
        print(f"evaluations of a member: {int(counts.min())} to {int(counts.max())}, in all {int(counts.sum())}")
        if given.out is not None:
            torch.save({"y1": states, "nfe": counts}, given.out)
    if dist.is_initialized():
        # ending the group holds Python's lock, which gloo's thread needs to let go of the last message
        time.sleep(0.1)
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
