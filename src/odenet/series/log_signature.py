"""Log-signatures of paths of straight lines, of any depth."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

Levels = Sequence[Tensor]
"""An element of the truncated tensor algebra, without its number of level 0: level k is (..., channels ** k)."""


def log_signature(increments: Tensor, depth: int) -> Tensor:
    """Coefficients at Lyndon words of the log-signature, (..., words), of a path with these increments, (..., S, C).

    The words, of at most `depth` letters, are those of `lyndon_words`. Coefficients are those of the expanded
    logarithm, the mode "words" of Signatory. Chen's identity joins neighbouring lines in pairs, in log2(S) operations.
    Kidger & Lyons 2021, "Signatory: differentiable computations of the signature and logsignature transforms".
    """
    channels = increments.shape[-1]
    levels = _logarithm(_joined(_exponential(increments, depth)))
    numbers: list[list[int]] = [[] for _ in range(depth)]
    for word in lyndon_words(channels, depth):
        number = 0
        for letter in word:
            number = number * channels + letter
        numbers[len(word) - 1].append(number)
    parts = [x[..., torch.tensor(n, dtype=torch.long, device=x.device)] for x, n in zip(levels, numbers, strict=True)]
    return torch.cat(parts, -1)


@lru_cache(maxsize=64)
def lyndon_words(letters: int, length: int) -> list[tuple[int, ...]]:
    """The words of at most `length` letters that are smaller than all their rotations: by length, then in order.

    Duval 1988, "Génération d'une section des classes de conjugaison et arbre des mots de Lyndon de longueur bornée".
    """
    words: list[tuple[int, ...]] = []
    word = [-1]
    while word:
        word[-1] += 1
        words.append(tuple(word))
        word = (word * (length // len(word) + 1))[:length]
        while word and word[-1] == letters - 1:
            word.pop()
    return sorted(words, key=lambda w: (len(w), w))


def _outer(a: Tensor, b: Tensor) -> Tensor:
    return (a[..., :, None] * b[..., None, :]).flatten(-2)


def _exponential(x: Tensor, depth: int) -> Levels:
    """exp(x) - 1 for x of level 1."""
    levels = [x]
    for k in range(2, depth + 1):
        levels.append(_outer(levels[-1], x / k))
    return levels


def _product(a: Levels, b: Levels) -> Levels:
    """The part from level 2 on of a b for two elements without a number: level 1 is zero, and left out."""
    return [
        sum((_outer(a[i], b[n - 2 - i]) for i in range(1, n - 1)), _outer(a[0], b[n - 2])) for n in range(2, len(a) + 1)
    ]


def _joined(levels: Levels) -> Levels:
    """The product over dimension -2 of 1 plus each, less 1."""
    while levels[0].shape[-2] > 1:
        if levels[0].shape[-2] % 2:
            levels = [torch.nn.functional.pad(x, (0, 0, 0, 1)) for x in levels]  # times 1
        a, b = [x[..., ::2, :] for x in levels], [x[..., 1::2, :] for x in levels]
        levels = [a[0] + b[0], *(x + y + z for x, y, z in zip(a[1:], b[1:], _product(a, b), strict=True))]
    return [x[..., 0, :] for x in levels]


def _logarithm(x: Levels) -> Levels:
    """log(1 + x) = x - x^2 / 2 + x^3 / 3 - ..."""
    total, power = list(x), x
    for k in range(2, len(x) + 1):
        power = [torch.zeros_like(x[0]), *_product(power, x)]
        total = [a + b * ((-1) ** (k + 1) / k) for a, b in zip(total, power, strict=True)]
    return total
