"""Derive the dense output of order 7 of RK8(7)13M in src/odenet/methods/tableaus/dopri8.py, and print its numbers.

    python tools/derive_dopri8_dense.py        # needs mpmath; ten seconds; prints the same digits on every run

Method: bootstrapping (W. H. Enright, K. R. Jackson, S. P. Norsett, P. G. Thomsen, Interpolants for Runge-Kutta
formulas, ACM Trans. Math. Softw. 12 (1986), 193-218) with all rooted-tree conditions written down and solved as they
are. Weights b(theta) have order q where sum_i b_i(theta) Phi_i(tree) = theta^|tree| / gamma(tree) for every tree with
|tree| <= q: one linear system, with a right-hand side for each power of theta.

1. The 13 stages and f(t1, y1) satisfy it up to order 5 for every theta. For order 6 one direction of the right-hand
   side is out of reach, and its size is a polynomial in theta with roots 0, 1 (both double) and two more, 0.311 and
   0.689. A stage at node 0.689 therefore has order 6 at once, and no evaluation is spent on one of order 5.
2. With that stage order 6 holds for every theta, so a row can be had at any node. Two more stages at 1/20 and 1/2
   reach order 7. The nodes are from a scan of both for small dense coefficients and a small error of order 8.
3. What is free in a row minimises its defects of order 7. What is free in b(theta) minimises the defects of order 8,
   integrated over the step, with b(1) = b, b'(0) = e_1 and b'(1) = e_14, so that the solution is C1.
"""

from __future__ import annotations

import sys
from math import factorial
from pathlib import Path

import mpmath
import numpy as np
from mpmath import mp

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests" / "methods")]

from rooted_trees import Tree, density, elementary_weights, trees, vertices  # noqa: E402

from odenet.methods.tableaus.dopri8 import TABLEAU  # noqa: E402

mp.dps = 40
TOLERANCE = mp.mpf("1e-12")  # the tableau is rounded to 1e-16; the smallest singular value that counts is 1e-6
SLOPE_AT_END = TABLEAU.stages  # index of f(t1, y1)
FREE_NODES = (mp.mpf(1) / 20, mp.mpf(1) / 2)
ORDER = 7
MIDPOINTS = 16  # of the rule that integrates over the step
RIDGE = mp.mpf("1e-8")  # weight of the size of b(theta) beside its defects: settles what the defects leave undecided

Array = np.ndarray  # of mpf


def used(a: Array) -> list[int]:
    """The stages that a row or b(theta) may weigh: not 2 to 5, whose own order is too low (their b is zero too)."""
    return [i for i in range(len(a)) if i not in (1, 2, 3, 4)]


def zeros(*shape: int) -> Array:
    """Zeros of mpmath in NumPy."""
    return np.full(shape, mp.mpf(0), dtype=object)


def solve(matrix: Array, right: Array) -> tuple[Array, Array, Array]:
    """Least squares with the smallest norm; a basis of the null space; the residuals."""
    pad = zeros(max(0, matrix.shape[1] - matrix.shape[0]), matrix.shape[1])
    u, s, v = mp.svd_r(mp.matrix(np.vstack([matrix, pad]).tolist()))
    u, v = (np.array(m.tolist(), dtype=object) for m in (u, v))
    rank = sum(x > TOLERANCE * s[0] for x in s)
    coordinates = (u[: len(matrix), :rank].T @ right) / np.array(list(s[:rank]), dtype=object)[:, None]
    solution = v[:rank].T @ coordinates
    return solution, v[rank:].T, right - matrix @ solution


def symmetry(tree: Tree) -> int:
    """sigma(tree): the local error is the sum of dt^|tree| / sigma(tree) * defect(tree) * elementary differential."""
    product = 1
    for branch in set(tree):
        count = tree.count(branch)
        product *= factorial(count) * symmetry(branch) ** count
    return product


def conditions(a: Array, order: int) -> tuple[Array, Array]:
    """Phi of the used stages, one row a tree, and the right-hand sides: column n - 1 belongs to theta^n."""
    phi = elementary_weights(a, order)
    right = zeros(len(phi), order)
    for row, tree in enumerate(phi):
        right[row, vertices(tree) - 1] = mp.mpf(1) / density(tree)
    return np.array(list(phi.values()))[:, used(a)], right


def defects(a: Array, order: int) -> tuple[Array, Array]:
    """Phi and 1 / gamma of the trees with exactly `order` vertices, both divided by sigma."""
    phi = elementary_weights(a, order)
    last = trees(order)
    matrix = np.array([phi[tree] / mp.mpf(symmetry(tree)) for tree in last])
    return matrix[:, used(a)], np.array([mp.mpf(1) / (density(tree) * symmetry(tree)) for tree in last])


def powers(theta: mpmath.mpf, degree: int) -> Array:
    """theta^1, theta^2, ..., theta^degree."""
    return np.array([theta ** (d + 1) for d in range(degree)], dtype=object)


def node_of_order_six(a: Array) -> mpmath.mpf:
    """The larger node in (0, 1) at which the conditions of order 6 can be met without another stage."""
    residual = solve(*conditions(a, 6))[2]
    size = residual[np.argmax([sum(x * x for x in row) for row in residual])]
    # size = theta^2 (theta - 1)^2 times a quadratic, found by its values: the double root is split by rounding.
    points = [mp.mpf(k) / 10 for k in (2, 5, 8)]
    values = [(size @ powers(x, 6)) / (x * (1 - x)) ** 2 for x in points]
    quadratic = mp.lu_solve(mp.matrix([[x**2, x, 1] for x in points]), mp.matrix(values))
    return max(mp.polyroots(list(quadratic)))


def append_stage(a: Array, node: mpmath.mpf) -> Array:
    """Add a stage whose value has order 6, and the least defects of order 7."""
    particular, null, residual = solve(*conditions(a, 6))
    assert max(abs(residual @ powers(node, 6))) < 1e-14
    row = particular @ powers(node, 6)
    matrix, target = defects(a, 7)
    row = row + null @ solve(matrix @ null, (target * node**7 - matrix @ row)[:, None])[0][:, 0]
    grown = zeros(len(a) + 1, len(a) + 1)
    grown[:-1, :-1], grown[-1, used(a)] = a, row
    return grown


def interpolant(a: Array) -> tuple[Array, mpmath.mpf]:
    """Dense rows (stages, ORDER), and the norm of the defects of order 8 over the step."""
    dense, null, residual = solve(*conditions(a, ORDER))
    assert np.abs(residual).max() < 1e-12
    width = null.shape[1]
    degrees = range(2, ORDER + 1)
    weights, slope = zeros(len(a)), zeros(len(a))
    weights[: TABLEAU.stages] = [mp.mpf(x) for x in TABLEAU.b]
    slope[SLOPE_AT_END] = mp.mpf(1)
    dense[:, 0] = mp.mpf(0)
    dense[0, 0] = mp.mpf(1)
    # b(theta) = dense powers(theta) + null z powers(theta)[1:], with z (width, ORDER - 1) flattened by degrees.
    eye = np.array(mp.eye(width).tolist(), dtype=object)
    at_end = np.vstack([np.kron(np.array(w, dtype=object)[None], eye) for w in ([1] * len(degrees), list(degrees))])
    factors = np.array(range(1, ORDER + 1), dtype=object)
    to_meet = np.concatenate([null.T @ (weights[used(a)] - dense.sum(1)), null.T @ (slope[used(a)] - dense @ factors)])
    met, free, missed = solve(at_end, to_meet[:, None])
    assert np.abs(missed).max() < 1e-12
    matrix, target = defects(a, ORDER + 1)
    rows, right = [RIDGE * np.array(mp.eye(width * len(degrees)).tolist(), dtype=object)], []
    right.append(-RIDGE * (null.T @ dense[:, 1:]).T.reshape(-1))
    root = mp.sqrt(mp.mpf(1) / MIDPOINTS)
    for k in range(MIDPOINTS):
        theta = (k + mp.mpf(1) / 2) / MIDPOINTS
        rows.append(root * np.kron(powers(theta, ORDER)[None, 1:], matrix @ null))
        right.append(root * (target * theta ** (ORDER + 1) - matrix @ (dense @ powers(theta, ORDER))))
    stacked, wanted = np.vstack(rows), np.concatenate(right)[:, None]
    # Normal equations: 40 digits can spare half.
    normal = free.T @ (stacked.T @ stacked) @ free
    step = mp.lu_solve(mp.matrix(normal.tolist()), mp.matrix((free.T @ stacked.T @ (wanted - stacked @ met)).tolist()))
    z = met[:, 0] + free @ np.array(list(step), dtype=object)
    dense[:, 1:] += null @ z.reshape(len(degrees), width).T
    left = (stacked @ z - wanted[:, 0])[width * len(degrees) :]
    full = zeros(len(a), ORDER)
    full[used(a)] = dense
    return full, mp.sqrt(sum(x * x for x in left))


def literal(row: Array) -> str:
    """A row of numbers rounded to double, as Python source."""
    return "(" + ", ".join(repr(float(x)) for x in row) + "),"


def main() -> None:
    """Derive and print."""
    a = zeros(SLOPE_AT_END + 1, SLOPE_AT_END + 1)
    for i, row in enumerate((*TABLEAU.a, TABLEAU.b)):
        a[i, : len(row)] = [mp.mpf(x) for x in row]
    nodes = (node_of_order_six(a), *FREE_NODES)
    for node in nodes:
        a = append_stage(a, node)
    dense, defect = interpolant(a)
    print("extra_c=(1.0,", *(f"{float(node)!r}," for node in nodes), "),")
    print("extra_a=(", "_B,", *(literal(a[i, :i]) for i in range(SLOPE_AT_END + 1, len(a))), "),", sep="\n")
    print("dense=(", *(literal(row) for row in dense), "),", sep="\n")
    largest = float(np.abs(a[SLOPE_AT_END + 1 :]).max()), float(np.abs(dense).max())
    print(
        f"# largest coefficient: rows {largest[0]:.3g}, dense {largest[1]:.4g}; defects of order 8: {float(defect):.3g}"
    )


if __name__ == "__main__":
    main()
