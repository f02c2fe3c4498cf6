"""Evaluate a dense solution anywhere."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.dense import evaluate
from ..core.leaves import Leaves, spread
from .record import Pieces


def evaluate_pieces(pieces: Pieces, t: Tensor, direction: Tensor, batched: bool, lanes: Tensor | None = None) -> Leaves:
    """The solution at t: (m,) gives leaves (m, ...); per sample t is (B, m) and the leaves (B, m, ...).

    lanes: the samples that t and direction are those of, where they are not all.
    """
    if not batched:
        index = torch.searchsorted((pieces.end * direction).detach().contiguous(), (t * direction).detach())
        place: tuple[Tensor, ...] = (index.clamp(max=len(pieces.end) - 1),)
    else:
        end, start = pieces.end.detach(), pieces.start.detach()
        if lanes is not None:
            end, start = end[:, lanes], start[:, lanes]
        moves = end != start
        reaches = moves.unsqueeze(-1) & ((end.unsqueeze(-1) - t.detach()) * direction[:, None] >= 0)
        first = reaches.to(torch.uint8).argmax(0)
        # past the last step taken (by rounding, or after a failure) the last one serves; of none taken, the first row
        last = torch.where(moves.any(0), len(end) - 1 - moves.to(torch.uint8).flip(0).argmax(0), 0)
        index = torch.where(reaches.any(0), first, last[:, None].expand_as(first))
        whose = torch.arange(t.shape[0], device=t.device) if lanes is None else lanes
        place = (index, whose[:, None].expand_as(index))
    start, end = pieces.start[place], pieces.end[place]
    length = end - start
    theta = torch.where(length == 0, torch.zeros_like(t), (t - start) / torch.where(length == 0, 1.0, length))
    y0 = tuple(y[place] for y in pieces.y)
    coefficients = [tuple(c[place] for c in cs) for cs in pieces.coefficients]
    return evaluate(y0, coefficients, tuple(spread(theta, y) for y in y0))
