"""A neural ODE trained in one process or several, by DistributedDataParallel or FSDP.

`python examples/parallel_training.py`, or `torchrun --nproc-per-node 2 examples/parallel_training.py --wrap fsdp`. Each
process takes its rows of every batch, and every sample its own solver steps, so all numbers are those of one process;
in float64, as Adam makes a difference of the rounding of float32.
"""

from __future__ import annotations

import argparse
import time

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from odenet.nn import MLPField, NeuralODE

BATCH, STEPS = 128, 40


def batch(step: int) -> tuple[Tensor, Tensor]:
    """Points in the plane, and whether they lie outside the unit circle: the same in every process."""
    draw = torch.Generator().manual_seed(step)
    x = torch.randn(BATCH, 2, generator=draw)
    return x, (x.norm(dim=1) > 1).to(x.dtype)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--wrap", choices=("ddp", "fsdp"), default="ddp")
    given = options.parse_args()
    if dist.is_torchelastic_launched():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    layer = NeuralODE(MLPField(3, hidden=(32,)), rtol=1e-4, atol=1e-4, per_sample=True)
    model: nn.Module = nn.Sequential(nn.Linear(2, 3), layer, nn.Linear(3, 1)).to(device)
    if dist.is_initialized() and given.wrap == "ddp":
        model = DistributedDataParallel(model)
    elif dist.is_initialized():
        fully_shard(layer)  # the layer around the solve, not its field
        fully_shard(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for step in range(STEPS):
        x, outside = (part[rank::size].to(device) for part in batch(step))
        loss = nn.functional.binary_cross_entropy_with_logits(model(x).squeeze(1), outside)
        optimizer.zero_grad()
        loss.backward()  # the mean over the processes, as all have as many rows
        optimizer.step()
        seen = torch.stack([loss.detach(), layer.stats.nfe.to(loss.dtype).mean()])
        if dist.is_initialized():
            dist.all_reduce(seen)
        if rank == 0 and step % 10 == 9:
            print(f"step {step + 1}: loss {seen[0] / size:.4f}, {seen[1] / size:.2f} evaluations a sample")
    if dist.is_initialized():
        # ending the group holds Python's lock, which gloo's thread needs to let go of the last message
        time.sleep(0.1)
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
