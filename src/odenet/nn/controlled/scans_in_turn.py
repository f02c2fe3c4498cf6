"""A scan over each part of a long path, one after the other; the gradient makes each again."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...gradients.custom_vjp import custom_vjp
from ...gradients.gradient import gradient_bypassed

# (weight, rises of the pieces of a part (K, B, channels), z before them (B, hidden)) to z after some of them, the last
# among them: (..., B, hidden)
Scan = Callable[[Tensor, Tensor, Tensor], Tensor]


def scans_in_turn(scan: Scan, weight: Tensor, rises: Tensor, z0: Tensor, size: int) -> Tensor:
    """What `scan` finds of parts of at most `size` pieces, each from the end of the one before: (..., B, hidden).

    Of several parts the gradient keeps z at their beginnings alone, and calls `scan` again.
    """
    if len(rises) <= size or gradient_bypassed() or torch.compiler.is_compiling():
        return torch.cat(_scans(scan, weight, rises.split(size), z0))
    with torch.no_grad():
        found = _scans(scan, weight, rises.split(size), z0)
        begins, out = torch.stack([z0, *(states[-1] for states in found[:-1])]), torch.cat(found)
    lengths = [len(states) for states in found]

    def again(inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        rises, z0, weight = inputs
        return (torch.cat(_scans(scan, weight, rises.split(size), z0)),)

    def backward(cotangents: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        (bar,) = cotangents
        if bar is None:
            return None, None, None
        rise_bar, weight_bar, z_bar = torch.empty_like(rises), torch.zeros_like(weight), torch.zeros_like(z0)
        parts = zip(bar.split(lengths), begins, rises.split(size), rise_bar.split(size), strict=True)
        for states_bar, begin, part, part_bar in reversed(list(parts)):
            inputs = [x.detach().requires_grad_() for x in (weight, part, begin)]
            with torch.enable_grad():
                states = scan(*inputs)
            states_bar = torch.cat([states_bar[:-1], states_bar[-1:] + z_bar])
            own, rise, z_bar = torch.autograd.grad(states, inputs, states_bar)
            part_bar.copy_(rise)
            weight_bar += own
        return rise_bar, z_bar, weight_bar

    return custom_vjp(backward, again, (out,), (rises, z0, weight), ())[0]


def _scans(scan: Scan, weight: Tensor, parts: Sequence[Tensor], z: Tensor) -> list[Tensor]:
    found: list[Tensor] = []
    for part in parts:
        found.append(scan(weight, part, z))
        z = found[-1][-1]
    return found
