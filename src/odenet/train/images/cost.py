"""What an image network costs: parameters, peak training memory of its block, evaluations, seconds a step."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...core.peak_memory import PeakMemory
from ...nn import Classifier
from .data import ImageData, scaled


@dataclass(frozen=True)
class Cost:
    """What one training step costs.

    block_bytes: at the peak of one forward and backward of the block, beyond its input and weights. nfe, backward_nfe:
    evaluations, means over the samples. seconds: of one step of the whole network, median.
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
    with PeakMemory() as memory:
        memory.leave_out([h, *block.parameters(), *block.buffers()])
        block(h).square().mean().backward()
    block.zero_grad(set_to_none=True)
    return memory.peak


def cost(net: Classifier, data: ImageData, batch: int, repeats: int) -> Cost:
    """Measure a network at a training batch; leaves its weights as they are."""
    images, labels = (part[:batch] for part in data.splits["train"])
    images = scaled(images)
    seconds = []
    for _ in range(repeats + 1):  # the first warms up
        start = time.perf_counter()
        net.zero_grad(set_to_none=True)
        F.cross_entropy(net(images), labels).backward()
        seconds.append(time.perf_counter() - start)
    stats = net.stats  # None of residual blocks
    depth = len(net.block) if isinstance(net.block, nn.Sequential) else 0
    counts = [
        depth if stats is None else round(torch.as_tensor(stats[name], dtype=torch.float64).mean().item())
        for name in ("nfe", "backward_nfe")
    ]
    with torch.no_grad():
        h = net.down(images)
    memory = block_memory(net.block, h)
    net.zero_grad(set_to_none=True)
    parameters = sum(p.numel() for p in net.parameters())
    return Cost(parameters, memory, counts[0], counts[1], sorted(seconds[1:])[repeats // 2])
