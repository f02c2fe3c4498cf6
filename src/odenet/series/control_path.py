"""A path through data, in polynomial pieces: what drives a controlled differential equation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor


@final
@dataclass(frozen=True, eq=False)
class ControlPath:
    """X(s), (B, C), for s from the first knot to the last, of polynomials between knots.

    knots: (K,), increasing, the same for all samples. pieces: (K - 1, P + 1, B, C), coefficients of the powers 0 to P
    of s less the knot before it. smooth: whether dX/ds is continuous. times: the time at each knot, (B, K), where it is
    another number than s. rows: the s of the rows of the series, (T,).

    A controlled equation dz = f(z) dX does not depend on how fast s runs along the path, so samples whose times differ
    share their knots: by default s counts the rows, and time is a channel of X.
    """

    knots: Tensor
    pieces: Tensor
    smooth: bool
    times: Tensor
    rows: Tensor

    @property
    def num_channels(self) -> int:
        return self.pieces.shape[-1]

    @property
    def interval(self) -> Tensor:
        """The first and the last knot, (2,)."""
        return self.knots[[0, -1]]

    def at_knots(self) -> Tensor:
        """X at every knot, (K, B, C)."""
        length = self.knots[-1] - self.knots[-2]
        powers = length ** torch.arange(self.pieces.shape[1], dtype=self.knots.dtype, device=self.knots.device)
        return torch.cat([self.pieces[:, 0], (self.pieces[-1] * powers[:, None, None]).sum(0, keepdim=True)])

    def evaluate(self, s: Tensor) -> Tensor:
        """X(s), (B, C), or (B, S, C) for s of shape (S,). Beyond the ends the first and last piece go on."""
        return _polynomial(
            self.pieces, self.knots, torch.as_tensor(s, dtype=self.knots.dtype, device=self.knots.device)
        )

    def derivative(self, s: Tensor) -> Tensor:
        """dX/ds, as `evaluate`. At a knot it is that of the piece after it."""
        s = torch.as_tensor(s, dtype=self.knots.dtype, device=self.knots.device)
        return _polynomial(derivative_pieces(self.pieces), self.knots, s)

    def position(self, t: Tensor) -> Tensor:
        """The s at which each sample has these times, (B, Q); t: (B, Q) or (Q,). Times outside are at the ends."""
        t = t.to(self.times).expand(len(self.times), t.shape[-1]).contiguous()
        after = torch.searchsorted(self.times.contiguous(), t, right=True).clamp(1, self.times.shape[1] - 1)
        t0, t1 = self.times.gather(1, after - 1), self.times.gather(1, after)
        s0, s1 = self.knots[after - 1], self.knots[after]
        ratio = ((t - t0) / torch.where(t1 > t0, t1 - t0, 1.0)).clamp(0.0, 1.0)
        return s0 + ratio * (s1 - s0)


def derivative_pieces(pieces: Tensor) -> Tensor:
    """The pieces of dX/ds, (K - 1, P, B, C)."""
    powers = torch.arange(1, pieces.shape[1], dtype=pieces.dtype, device=pieces.device)
    return pieces[:, 1:] * powers[:, None, None]


def piece_value(pieces: Tensor, knots: Tensor, s: Tensor) -> Tensor:
    """The polynomial at one s, (B, C). s: (), or (B,) for a number of each sample."""
    # the number of a piece stays a tensor, which a graph can hold; `searchsorted` has no such form for one s
    index = ((knots <= s.detach()[..., None]).sum(-1) - 1).clamp(0, len(pieces) - 1)
    if s.ndim:
        u = (s - knots[index])[:, None]
        piece = pieces.movedim(2, 0)[torch.arange(len(s), device=s.device), index].unbind(1)  # P + 1 of (B, C)
    else:
        index = index.reshape(1)
        u = s - knots.index_select(0, index)
        piece = pieces.index_select(0, index)[0].unbind(0)
    value = piece[-1]
    for coefficient in reversed(piece[:-1]):
        value = coefficient + u * value
    return value


def _polynomial(pieces: Tensor, knots: Tensor, s: Tensor) -> Tensor:
    if not s.ndim:
        return piece_value(pieces, knots, s)
    return torch.stack([piece_value(pieces, knots, x) for x in s.unbind()], 1)
