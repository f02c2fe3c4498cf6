"""Log-signatures of pieces of a path: what it does to a controlled equation, to a given depth.

The signature of a path is the series of its iterated integrals, and its logarithm has no redundant terms: the
increments at depth 1, the signed areas between pairs of channels at depth 2. Chen's identity joins pieces: the
signature of a straight line is the exponential of its increment, that of several pieces the product of theirs, in the
truncated tensor algebra. Lyons 2014, "Rough paths, signatures and the modelling of functions on streams"; Reizenstein &
Graham 2020, "iisignature".
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

Levels = list[Tensor]
"""Terms of depth 1, 2, ...: (..., d), (..., d^2), ... ; that of depth 0 is 1 in a signature and 0 in its logarithm."""


def log_signature(increments: Tensor, depth: int) -> Tensor:
    """Log-signatures of paths of straight pieces, (..., L), from increments (..., n, d) of the pieces.

    Coordinates: the coefficients of the Lyndon words of up to `depth` letters, by length and then in order of the
    alphabet; at depth 2 those are the increments of the d channels and the areas of the pairs i < j.
    """
    pieces = [_exponential(increments, depth)]
    while pieces[0][0].shape[-2] > 1:
        pieces = [_joined(pieces[0], depth)]
    levels = _logarithm([level.squeeze(-2) for level in pieces[0]], depth)
    words = lyndon_words(increments.shape[-1], depth)
    columns = []
    for length in range(1, depth + 1):
        numbers = [_number(word, increments.shape[-1]) for word in words if len(word) == length]
        columns.append(levels[length - 1][..., numbers])
    return torch.cat(columns, -1)


@lru_cache(maxsize=64)
def lyndon_words(letters: int, depth: int) -> tuple[tuple[int, ...], ...]:
    """Words of 1 to `depth` letters that come before all of their rotations, by length. Duval 1988."""
    words: list[tuple[int, ...]] = []
    word = [-1]
    while word:
        word[-1] += 1
        words.append(tuple(word))
        repeated = len(word)
        while len(word) < depth:
            word.append(word[-repeated])
        while word and word[-1] == letters - 1:
            word.pop()
    return tuple(sorted((w for w in words if len(w) <= depth), key=lambda w: (len(w), w)))


def _number(word: tuple[int, ...], letters: int) -> int:
    """The position of a word among all words of its length."""
    number = 0
    for letter in word:
        number = number * letters + letter
    return number


def _exponential(x: Tensor, depth: int) -> Levels:
    levels = [x]
    for k in range(2, depth + 1):
        levels.append(_outer(levels[-1], x) / k)
    return levels


def _joined(levels: Levels, depth: int) -> Levels:
    """The signatures of pairs of neighbours, along dimension -2."""
    count = levels[0].shape[-2]
    even = count // 2 * 2
    pairs = _product([x[..., :even:2, :] for x in levels], [x[..., 1:even:2, :] for x in levels], depth, 1.0)
    return [torch.cat([a, x[..., even:, :]], -2) for a, x in zip(pairs, levels, strict=True)]


def _product(a: Levels, b: Levels, depth: int, unit: float) -> Levels:
    """Terms of depth 1 to `depth` of (unit + a)(unit + b)."""
    out: Levels = []
    for k in range(1, depth + 1):
        term = unit * (a[k - 1] + b[k - 1])
        for i in range(1, k):
            term = term + _outer(a[i - 1], b[k - i - 1])
        out.append(term)
    return out


def _logarithm(x: Levels, depth: int) -> Levels:
    """log(1 + x) = x - x^2/2 + x^3/3 - ..."""
    total, power = x, x
    for k in range(2, depth + 1):
        power = _product(power, x, depth, 0.0)
        total = [a + (-1.0) ** (k + 1) / k * b for a, b in zip(total, power, strict=True)]
    return total


def _outer(a: Tensor, b: Tensor) -> Tensor:
    return (a[..., :, None] * b[..., None, :]).flatten(-2)
