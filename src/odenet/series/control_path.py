"""A path through data, in polynomial pieces: what drives a controlled differential equation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from ..core.validate import describe_shape


@final
@dataclass(frozen=True, eq=False)
class ControlPath:
    """X(s), (B, C), for s from the first knot to the last, of polynomials between knots.

    knots: (K,), increasing, the same for all samples. pieces: (K - 1, P + 1, B, C), coefficients of the powers 0 to P
    of s less the knot before it. smooth: whether dX/ds is continuous up to the last row of a sample. times: the time at
    each knot, (B, K), where it is another number than s. rows: s at the rows of the series, (T,) or (B, T). last: s at
    the last row of each sample, (B,), behind which X is constant; None: the last knot, for all. timed: the s that
    `times` are at, (K,) or (B, K), where those are not the knots.

    A controlled equation dz = f(z) dX does not depend on how fast s runs along the path, so samples whose times differ
    share their knots: by default s counts the rows, and time is a channel of X.
    """

    knots: Tensor
    pieces: Tensor
    smooth: bool
    times: Tensor
    rows: Tensor
    last: Tensor | None = None
    timed: Tensor | None = None

    @property
    def num_channels(self) -> int:
        return self.pieces.shape[-1]

    @property
    def interval(self) -> Tensor:
        """The first and the last knot, (2,)."""
        return self.knots[[0, -1]]

    @property
    def jumps(self) -> Tensor:
        """The inner knots at which dX/ds jumps: all, or of a smooth path those at which a sample ends."""
        inner = self.knots[1:-1]
        if not self.smooth:
            return inner
        return inner[:0] if self.last is None else inner[torch.isin(inner, self.last)]

    def evaluate(self, s: Any) -> Tensor:
        """X(s), (B, C), or (B, S, C) for s of shape (S,). Beyond the ends the first and last piece go on."""
        return _polynomials(self.pieces, self.knots, self._checked(s))

    def derivative(self, s: Any) -> Tensor:
        """dX/ds, as `evaluate`. At a knot it is that of the piece after it."""
        return _polynomials(derivative_pieces(self.pieces), self.knots, self._checked(s))

    def position(self, t: Tensor) -> Tensor:
        """The s at which each sample has these times, (B, Q); t: (B, Q) or (Q,). Times outside are at the ends."""
        size, count = self.times.shape
        if t.ndim not in (1, 2) or (t.ndim == 2 and len(t) != size):
            raise ValueError(f"t must be (Q,) or ({size}, Q), times for each sample; got {describe_shape(t)}")
        t = t.to(self.times).expand(size, t.shape[-1]).contiguous()
        after = torch.searchsorted(self.times.detach().contiguous(), t.detach(), right=True).clamp(1, count - 1)
        t0, t1 = self.times.gather(1, after - 1), self.times.gather(1, after)
        timed = (self.knots if self.timed is None else self.timed).expand(size, count)
        s0, s1 = timed.gather(1, after - 1), timed.gather(1, after)
        ratio = ((t - t0) / torch.where(t1 > t0, t1 - t0, 1.0)).clamp(0.0, 1.0)
        s = s0 + torch.where(t1 > t0, ratio, 1.0) * (s1 - s0)  # where time stands still, what happens then is over
        return s if self.last is None else s.minimum(self.last[:, None])

    def _checked(self, s: Any) -> Tensor:
        s = torch.as_tensor(s, dtype=self.knots.dtype, device=self.knots.device)
        if s.ndim > 1:
            raise ValueError(f"s must be a number or (S,), the same for all samples; got {describe_shape(s)}")
        return s


def derivative_pieces(pieces: Tensor) -> Tensor:
    """The pieces of dX/ds, (K - 1, P, B, C)."""
    powers = torch.arange(1, pieces.shape[1], dtype=pieces.dtype, device=pieces.device)
    return pieces[:, 1:] * powers[:, None, None]


def piece_value(pieces: Tensor, knots: Tensor, s: Tensor) -> Tensor:
    """The polynomial at one s (), (B, C)."""
    index, u = _piece(len(pieces), knots, s)
    return _horner(pieces.index_select(0, index.reshape(1))[0].unbind(), u)


def piece_value_of_each(pieces: Tensor, knots: Tensor, s: Tensor) -> Tensor:
    """The polynomials at an s of each sample, (B,): (B, C). pieces: (B, K - 1, P + 1, C).

    Raises IndexError where s has not as many samples as pieces.
    """
    index, u = _piece(pieces.shape[1], knots, s)
    if len(s) != len(pieces):
        raise IndexError(f"{len(s)} numbers s for {len(pieces)} samples")
    piece = pieces[torch.arange(len(s), device=s.device), index]
    return _horner(piece.unbind(1), u[:, None])


def _polynomials(pieces: Tensor, knots: Tensor, s: Tensor) -> Tensor:
    """The polynomials at s, (): (B, C), or (S,): (B, S, C)."""
    if not s.ndim:
        return piece_value(pieces, knots, s)
    index = (torch.searchsorted(knots, s.detach().contiguous(), right=True) - 1).clamp(0, len(pieces) - 1)
    u = s - knots[index]
    return _horner(pieces[index].unbind(1), u[:, None, None]).movedim(0, 1)


def _piece(count: int, knots: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """The number of the piece that s is in, of `count` pieces, and how far."""
    # a graph can hold this; for one s, `searchsorted` and an index would read a number
    index = ((knots <= s.detach()[..., None]).sum(-1) - 1).clamp(0, count - 1)
    return index, s - knots.index_select(0, index.reshape(-1)).view(s.shape)


def _horner(coefficients: tuple[Tensor, ...], u: Tensor) -> Tensor:
    *lower, value = coefficients
    for coefficient in reversed(lower):
        value = coefficient + u * value
    return value
