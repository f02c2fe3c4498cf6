"""What an image network costs: memory, evaluations and time of a training step."""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...api.peak_memory import PeakMemory
from ...nn import Classifier
from .data import ImageData, scaled


def block_memory(block: nn.Module, h: Tensor) -> int:
    """Peak bytes of one forward and backward pass of the block at input h, gradients of the weights included."""
    block.zero_grad(set_to_none=True)
    h = h.detach().requires_grad_()
    with PeakMemory() as memory:
        memory.exclude([h, *block.parameters(), *block.buffers()])
        block(h).square().mean().backward()
    block.zero_grad(set_to_none=True)
    return memory.peak


def cost(net: Classifier, data: ImageData, batch: int, repeats: int) -> dict[str, float]:
    """Measure a network at a training batch.

    block_bytes: at the peak of one forward and backward of the block, beyond its input and weights. nfe, backward_nfe:
    evaluations, means over the samples. seconds: of one step of the whole network, median.
    """
    images, labels = (part[:batch] for part in data.splits["train"])
    images, seconds = scaled(images), []
    for _ in range(repeats + 1):  # the first warms up
        start = time.perf_counter()
        net.zero_grad(set_to_none=True)
        F.cross_entropy(net(images), labels).backward()
        seconds.append(time.perf_counter() - start)
    depth = len(net.block) if isinstance(net.block, nn.Sequential) else 0
    stats = net.stats or {"nfe": depth, "backward_nfe": depth}
    with torch.no_grad():
        h = net.down(images)
    memory = block_memory(net.block, h)
    net.zero_grad(set_to_none=True)
    return {
        "parameters": sum(p.numel() for p in net.parameters()),
        "block_bytes": memory,
        **{name: round(torch.as_tensor(stats[name]).double().mean().item()) for name in ("nfe", "backward_nfe")},
        "seconds": sorted(seconds[1:])[repeats // 2],
    }
