"""Rooted trees and their order conditions (Hairer, Norsett & Wanner I, section II.2)."""

from collections.abc import Iterator
from functools import cache

import numpy as np

Tree = tuple  # the subtrees at the root, in canonical order; () is the single vertex


@cache
def trees(order: int) -> tuple[Tree, ...]:
    """All rooted trees with `order` vertices: 1, 1, 2, 4, 9, 20, 48, 115, 286, ... of them."""
    return tuple(_forests(order - 1, order - 1, None))


def _forests(vertices: int, largest: int, bound: int | None) -> Iterator[Tree]:
    """Multisets of trees with `vertices` in all: sizes descend from `largest`, indices within a size from `bound`."""
    if vertices == 0:
        yield ()
        return
    for size in range(min(vertices, largest), 0, -1):
        candidates = trees(size)
        last = len(candidates) - 1 if bound is None or size < largest else bound
        for index in range(last, -1, -1):
            for rest in _forests(vertices - size, size, index):
                yield (candidates[index], *rest)


@cache
def vertices(tree: Tree) -> int:
    """|tree|, its order."""
    return 1 + sum(vertices(branch) for branch in tree)


@cache
def density(tree: Tree) -> int:
    """gamma(tree): the weights must give 1 / gamma."""
    product = vertices(tree)
    for branch in tree:
        product *= density(branch)
    return product


def elementary_weights(a: np.ndarray, order: int) -> dict[Tree, np.ndarray]:
    """Phi_i(tree) for every stage i of the square matrix `a` and every tree with up to `order` vertices."""
    phi: dict[Tree, np.ndarray] = {}
    for size in range(1, order + 1):
        for tree in trees(size):
            product = np.ones(len(a), dtype=a.dtype)
            for branch in tree:
                product = product * (a @ phi[branch])
            phi[tree] = product
    return phi
