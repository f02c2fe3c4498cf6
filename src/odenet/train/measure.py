"""What a net costs: parameters, peak training memory of its block, evaluations, seconds a step."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..api.peak_memory import PeakMemory
from ..nn import Classifier
from .data import Batches, ImageData
from .tasks import mean


@dataclass(frozen=True)
class Cost:
    """What one training step costs.

    block_bytes: at the peak of one forward and backward of the block, beyond its input and weights. nfe, backward_nfe:
    evaluations. seconds: of one step of the whole net, median.
    """

    parameters: int
    block_bytes: int
    nfe: int
    backward_nfe: int
    seconds: float


def block_memory(block: nn.Module, h: Tensor) -> int:
    """Peak bytes of one forward and backward pass of the block at input h, gradients of the weights included."""
    block.zero_grad(set_to_none=True)
    h = h.detach().requires_grad_()
    known = [h, *block.parameters(), *block.buffers()]
    with PeakMemory() as memory:
        memory.leave_out(known)
        block(h).square().mean().backward()
    block.zero_grad(set_to_none=True)
    return memory.peak


def cost(net: Classifier, data: ImageData, batch_size: int, repeats: int) -> Cost:
    """Measure a net at a training batch; leaves its weights as they are."""
    images, labels = next(iter(Batches(data.train, batch_size, seed=0, shift=data.shift)))
    net.train()
    seconds = []
    for _ in range(repeats + 1):  # the first warms up
        start = time.perf_counter()
        net.zero_grad(set_to_none=True)
        F.cross_entropy(net(images), labels).backward()
        seconds.append(time.perf_counter() - start)
    stats = net.stats
    with torch.no_grad():
        h = net.down(images)
    depth = len(net.block) if isinstance(net.block, nn.Sequential) else 0
    memory = block_memory(net.block, h)
    net.zero_grad(set_to_none=True)
    return Cost(
        sum(p.numel() for p in net.parameters()),
        memory,
        depth if stats is None else round(mean(stats.nfe)),
        depth if stats is None else round(mean(stats.backward_nfe)),
        sorted(seconds[1:])[repeats // 2],
    )
