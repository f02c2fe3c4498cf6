"""Order conditions of every tableau, measured orders, and the errors of a malformed tableau."""

import dataclasses
import math
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for every import mode of pytest

from rooted_trees import density, elementary_weights, trees

from odenet.methods import METHODS, ExplicitRK, ImplicitRK, ImplicitTableau
from odenet.methods.tableau import Tableau
from odenet.methods.tableaus import bosh3, butcher5, dopri5, dopri8, euler, heun, ralston, rk4, tsit5

TABLEAUS = (
    *(method.tableau for method in METHODS.values() if isinstance(method, ExplicitRK)),
    butcher5.TABLEAU,  # starts implicit_adams
)
ADAPTIVE = tuple(t for t in TABLEAUS if t.error is not None)
THETAS = (0.05, 0.2, 1 / 3, 0.5, 0.7, 0.95, 1.0)
# Dense coefficients are of size 600 (dopri8) and cancel; the conditions of b hold to 1e-15.
TOLERANCE = 1e-14
DENSE_TOLERANCE = 3e-13

every = pytest.mark.parametrize("tableau", TABLEAUS, ids=lambda t: t.name)
adaptive = pytest.mark.parametrize("tableau", ADAPTIVE, ids=lambda t: t.name)


def stage_matrix(tableau: Tableau) -> np.ndarray:
    """The rows of `a` and `extra_a` in one square matrix; one more row, f(t1, y1), where Hermite needs it."""
    rows = [*tableau.a, *tableau.extra_a]
    if tableau.dense is None and not tableau.fsal:
        rows.append(tableau.b)
    matrix = np.zeros((len(rows), len(rows)))
    for i, row in enumerate(rows):
        matrix[i, : len(row)] = row
    return matrix


def dense_rows(tableau: Tableau) -> np.ndarray:
    """`dense`, or the same for the cubic Hermite interpolant."""
    if tableau.dense is not None:
        return np.array(tableau.dense)
    stages = len(stage_matrix(tableau))
    rise, start, end = np.zeros(stages), np.eye(stages)[0], np.eye(stages)[-1]
    rise[: tableau.stages] = tableau.b
    return np.stack([start, 3 * rise - 2 * start - end, start + end - 2 * rise], axis=1)


def padded(tableau: Tableau, weights) -> np.ndarray:
    """Weights of the stages, with zeros for the extra ones."""
    out = np.zeros(len(stage_matrix(tableau)))
    out[: tableau.stages] = weights
    return out


def defect(tableau: Tableau, weights: np.ndarray, order: int, theta: float = 1.0) -> float:
    """The largest violation of a condition of exactly this order."""
    phi = elementary_weights(stage_matrix(tableau), order)
    return max(abs(weights @ phi[tree] - theta**order / density(tree)) for tree in trees(order))


def test_rooted_trees_are_all_there():
    assert [len(trees(n)) for n in range(1, 10)] == [1, 1, 2, 4, 9, 20, 48, 115, 286]  # OEIS A000081
    assert all(len(set(trees(n))) == len(trees(n)) for n in range(1, 10))
    assert sorted(density(tree) for tree in trees(4)) == [4, 8, 12, 24]


@every
def test_weights_have_their_order_and_no_more(tableau):
    b = padded(tableau, tableau.b)
    for order in range(1, tableau.order + 1):
        assert defect(tableau, b, order) < TOLERANCE
    assert defect(tableau, b, tableau.order + 1) > 1e-6


@adaptive
def test_embedded_weights_have_their_order_and_no_more(tableau):
    b_hat = padded(tableau, np.subtract(tableau.b, tableau.error))
    for order in range(1, tableau.embedded_order + 1):
        assert defect(tableau, b_hat, order) < TOLERANCE
    assert defect(tableau, b_hat, tableau.embedded_order + 1) > 1e-6


@every
@pytest.mark.parametrize("theta", THETAS)
def test_dense_output_has_its_order_everywhere(tableau, theta):
    rows = dense_rows(tableau)
    weights = rows @ theta ** np.arange(1, rows.shape[1] + 1)
    for order in range(1, tableau.dense_order + 1):
        assert defect(tableau, weights, order, theta) < DENSE_TOLERANCE
    if theta != 1.0:
        assert defect(tableau, weights, tableau.dense_order + 1, theta) > 1e-7


@every
def test_dense_output_joins_the_steps_with_their_slopes(tableau):
    rows, a = dense_rows(tableau), stage_matrix(tableau)
    end = next(i for i in range(len(a)) if np.array_equal(a[i], padded(tableau, tableau.b)))  # f(t1, y1)
    np.testing.assert_allclose(rows.sum(1), padded(tableau, tableau.b), atol=DENSE_TOLERANCE)
    np.testing.assert_array_equal(rows[:, 0], np.eye(len(a))[0])
    np.testing.assert_allclose(rows @ np.arange(1, rows.shape[1] + 1), np.eye(len(a))[end], atol=1e-11)


def test_misprint_in_the_published_tsit5():
    published = (*tsit5.TABLEAU.error[:-1], 1 / 66)
    for order in range(1, 5):
        assert defect(tsit5.TABLEAU, np.subtract(tsit5.TABLEAU.b, published), order) > 1e-4
    with pytest.raises(ValueError, match=r"'tsit5': error must sum to zero = 0\.0, got 0\.0303"):
        dataclasses.replace(tsit5.TABLEAU, error=published)


def test_counts_of_stages():
    assert {t.name: (t.stages, t.extra_stages) for t in (rk4.RK4, dopri5.TABLEAU, dopri8.TABLEAU)} == {
        "rk4": (4, 0),
        "dopri5": (7, 0),
        "dopri8": (13, 4),
    }


def test_extra_stages_of_dopri8_start_with_the_next_slope():
    assert dopri8.TABLEAU.extra_a[0] == dopri8.TABLEAU.b
    assert dopri8.TABLEAU.extra_c[0] == 1.0


def test_hermite_is_not_of_higher_order_than_the_method():
    assert [t.dense_order for t in (euler.TABLEAU, heun.HEUN, bosh3.TABLEAU, rk4.RK4)] == [1, 2, 3, 3]


# Orders as measured: a nonlinear field that depends on t, with a known solution.


def field(t, y):
    return np.array([-2 * t * y[0] ** 2, (1 + t**2) * math.cos(t) * y[0] * y[1]])


def exact(t):
    t = np.asarray(t)
    return np.stack([1 / (1 + t**2), np.exp(np.sin(t))], axis=-1)


def attempt(tableau: Tableau, t: float, dt: float, y: np.ndarray) -> np.ndarray:
    """The slopes of all stages of a step, with the extra stages."""
    a, slopes = stage_matrix(tableau), []
    for row in a:
        done = row[: len(slopes)]
        slopes.append(
            field(t + dt * done.sum(), y + dt * sum((w * k for w, k in zip(done, slopes, strict=True)), 0 * y))
        )
    return np.array(slopes)


def slope(steps, errors) -> float:
    return np.polyfit(np.log(steps), np.log(errors), 1)[0]


@every
def test_measured_order(tableau):
    counts = np.array((6, 8, 10, 12, 16) if tableau.order == 8 else (48, 64, 96, 128))
    errors, estimates = [], []
    for n in counts:
        times = np.linspace(-1, 1, n + 1)
        y, dt, path, estimate = exact(-1.0), 2 / n, [], [1.0]
        for t in times[:-1]:
            slopes = attempt(tableau, t, dt, y)[: tableau.stages]
            y = y + dt * np.array(tableau.b) @ slopes
            path.append(y)
            if tableau.error is not None:
                estimate.append(np.abs(dt * np.array(tableau.error) @ slopes).sum())
        # The mean over the steps: at a single time, error constants may happen to cancel.
        errors.append(np.abs(path - exact(times[1:])).mean())
        estimates.append(np.mean(estimate[1:] or estimate))
    assert slope(2 / counts, errors) == pytest.approx(tableau.order, abs=0.3)
    if tableau.error is not None:
        assert slope(2 / counts, estimates) == pytest.approx(tableau.embedded_order + 1, abs=0.3)


@every
def test_measured_order_of_dense_output(tableau):
    rows, theta = dense_rows(tableau), np.linspace(0, 1, 21)
    powers = theta[:, None] ** np.arange(1, rows.shape[1] + 1)
    steps = (0.3, 0.25, 0.2, 0.15) if tableau.order == 8 else (0.08, 0.06, 0.04, 0.03)
    errors = []
    for dt in steps:
        y = exact(-0.8)
        path = y + dt * (powers @ rows.T) @ attempt(tableau, -0.8, dt, y)
        errors.append(np.abs(path - exact(-0.8 + dt * theta)).max())
    assert slope(steps, errors) >= tableau.dense_order + 0.7


GOOD = dopri5.TABLEAU
DOP8 = dopri8.TABLEAU


def nudged(rows, i, by=1e-9):
    """The rows with the first entry of row i changed."""
    return (*rows[:i], (rows[i][0] + by, *rows[i][1:]), *rows[i + 1 :])


@pytest.mark.parametrize(
    ("tableau", "changes", "message"),
    [
        (GOOD, {"b": ()}, r"b must have 1 entries \(at least one stage\), got 0"),
        (GOOD, {"c": GOOD.c[:-1]}, r"c must have 7 entries .*, got 6"),
        (GOOD, {"a": GOOD.a[:-1]}, r"a must have 7 entries .*, got 6"),
        (GOOD, {"a": (*GOOD.a[:3], GOOD.a[4], *GOOD.a[4:])}, r"a\[3\] must have 3 entries .*, got 4"),
        (GOOD, {"a": nudged(GOOD.a, 4)}, r"a\[4\] must sum to c\[4\]"),
        (GOOD, {"a": nudged(GOOD.a, 4, math.nan)}, r"a\[4\] must sum to c\[4\]"),
        (GOOD, {"c": (0.1, *GOOD.c[1:])}, r"a\[0\] must sum to c\[0\] = 0.1, got 0.0"),
        (heun.HEUN, {"b": (0.5, 0.4)}, r"b must sum to one = 1.0, got 0.9"),
        (GOOD, {"error": (*GOOD.error[:-1], 1 / 40)}, r"error must sum to zero = 0.0"),
        (GOOD, {"error": GOOD.error[:-1]}, r"error must have 7 entries .*, got 6"),
        (GOOD, {"error": None}, r"error and embedded_order go together"),
        (GOOD, {"embedded_order": None}, r"error and embedded_order go together"),
        (heun.HEUN, {"fsal": True}, r"fsal=True needs a\[1\] to equal b\[:-1\], got \(1.0,\) and \(0.5,\)"),
        (ralston.TABLEAU, {"a": ((), (2 / 3,)), "b": (2 / 3, 1 / 3), "fsal": True}, r"fsal=True needs b\[1\] == 0"),
        (GOOD, {"dense": GOOD.dense[:-1]}, r"dense must have 7 entries .*, got 6"),
        (GOOD, {"dense": (*GOOD.dense[:-1], (0.0,))}, r"dense\[6\] must have 4 entries .*, got 1"),
        (GOOD, {"dense": nudged(GOOD.dense, 2)}, r"dense\[2\] must sum to b\[2\]"),
        (DOP8, {"dense": nudged(DOP8.dense, 15, 1e-6)}, r"dense\[15\] must sum to zero \(an extra stage\)"),
        (
            GOOD,
            {"dense": ((0.5, GOOD.dense[0][1] + 0.5, *GOOD.dense[0][2:]), *GOOD.dense[1:])},
            r"dense\[:\]\[0\] must sum to one .*, got 0.5",
        ),
        (GOOD, {"dense_order": 6}, r"dense_order must lie between 1 and the order 5, got 6"),
        (DOP8, {"extra_c": DOP8.extra_c[:-1]}, r"extra_a must have 3 entries .*, got 4"),
        (DOP8, {"extra_a": nudged(DOP8.extra_a, 2)}, r"extra_a\[2\] must sum to extra_c\[2\]"),
        (DOP8, {"extra_a": DOP8.extra_a[::-1]}, r"extra_a\[0\] must have 13 entries .*, got 16"),
        (DOP8, {"dense": None}, r"extra stages need `dense`, got 4"),
    ],
)
def test_a_malformed_tableau_says_what_is_wrong(tableau, changes, message):
    with pytest.raises(ValueError, match=f"tableau '{tableau.name}': {message}"):
        dataclasses.replace(tableau, **changes)


def test_fsal_needs_the_last_node_at_the_end():
    with pytest.raises(ValueError, match=r"fsal=True needs c\[2\] == 1, got 1.0000000000001"):
        Tableau("x", 1, (0.0, 0.5, 1.0000000000001), ((), (0.5,), (0.5, 0.5)), (0.5, 0.5, 0.0), fsal=True)


IMPLICIT = tuple(method.tableau for method in METHODS.values() if isinstance(method, ImplicitRK))


@pytest.mark.parametrize("tableau", IMPLICIT, ids=lambda t: t.name)
def test_implicit_weights_have_their_order_and_no_more(tableau):
    def worst(order):
        phi = elementary_weights(np.array(tableau.a), order)
        return max(abs(np.array(tableau.b) @ phi[tree] - 1 / density(tree)) for tree in trees(order))

    for order in range(1, tableau.order + 1):
        assert worst(order) < TOLERANCE
    assert worst(tableau.order + 1) > 1e-6


@pytest.mark.parametrize(
    "name", ["implicit_euler", "radauIIA3", "radauIIA5", "sdirk2", "trbdf2", "kvaerno3", "kvaerno5", "esdirk54"]
)
def test_l_stable(name):
    """The stability function 1 + z b (I - z A)^-1 1 vanishes at infinity, and is at most 1 on the imaginary axis."""
    table = METHODS[name].tableau
    a, b = np.array(table.a), np.array(table.b)

    def size(z):
        return abs(1 + z * b @ np.linalg.solve(np.eye(len(b)) - z * a, np.ones(len(b))))

    assert size(-1e8) < 1e-6
    assert max(size(1j * y) for y in np.logspace(-2, 3, 60)) <= 1 + 1e-9


def test_blocks_of_stages():
    blocks = {t.name: [len(block) for block in t.blocks] for t in IMPLICIT}
    assert blocks["gl6"] == [3] and blocks["radauIIA3"] == [2]
    assert blocks["trbdf2"] == [1, 1, 1] and blocks["sdirk2"] == [1, 1] and blocks["trapezoid"] == [1, 1]


STIFF = tuple(m.tableau for m in METHODS.values() if isinstance(m, ImplicitRK) and m.tableau.error is not None)


@pytest.mark.parametrize("tableau", [t for t in STIFF if not t.start], ids=lambda t: t.name)
def test_the_embedded_formula_of_an_esdirk_has_its_order(tableau):
    """b - error fulfils all conditions up to one order and not the next, and the estimate falls accordingly."""
    order = min(tableau.order, tableau.error_order - 1) if tableau.name != "trbdf2" else 3
    b_hat = np.array(tableau.b) - np.array(tableau.error)

    def worst(n):
        phi = elementary_weights(np.array(tableau.a), n)
        return max(abs(b_hat @ phi[tree] - 1 / density(tree)) for tree in trees(n))

    assert all(worst(n) < 1e-13 for n in range(1, order + 1))
    assert worst(order + 1) > 1e-5


@pytest.mark.parametrize(
    ("name", "order", "degree"),
    [("trbdf2", 2, 2), ("kvaerno3", 3, 2), ("kvaerno5", 4, 4), ("esdirk54", 4, 4), ("radauIIA5", 3, 3)],
)
def test_implicit_dense_output_has_its_order(name, order, degree):
    """For every theta; with an infinitely stiff mode it is exact for slow solutions that are polynomials.

    There all stages are on the slow solution, whatever the slope at the start is, and their slopes follow from them.
    """
    tableau = METHODS[name].tableau
    dense, s, extra = np.array(tableau.dense), tableau.stages, len(tableau.extra_c)
    c, a = np.array(tableau.c + tableau.extra_c), np.zeros((s + extra, s + extra))
    a[:s, :s] = tableau.a
    for j, row in enumerate(tableau.extra_a):
        a[s + j, :s], a[s + j, s + j] = row[:-1], row[-1]
    powers = np.arange(1, dense.shape[1] + 1)
    for theta in THETAS:
        weights = dense @ theta**powers
        for n in range(1, order + 1):
            phi = elementary_weights(a, n)
            for tree in trees(n):
                assert weights @ phi[tree] == pytest.approx(theta**n / density(tree), abs=1e-12)
    first = 1 if a[0, 0] == 0.0 else 0
    for start in (0.0, 1.0):
        for n in range(1, degree + 1):
            found = np.linalg.solve(a[first:, first:], c[first:] ** n - start * a[first:, :first].sum(1))
            slopes = np.concatenate([np.full(first, start), found])
            for theta in THETAS:
                assert (dense @ theta**powers) @ slopes == pytest.approx(theta**n, abs=1e-10)


@pytest.mark.parametrize("tableau", STIFF, ids=lambda t: t.name)
def test_predictors_are_exact_for_lines(tableau):
    """The guess of a stage by the stages before it is exact where the slope is linear in t, from the third stage on."""
    if tableau.predictor is None:
        return
    for i, row in enumerate(tableau.predictor):
        if sum(x != 0.0 for x in row) > 1:
            assert np.dot(row, tableau.c) == pytest.approx(tableau.c[i], abs=1e-12)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"b": (0.5, 0.4)}, r"b must sum to 1.0, got 0.9"),
        ({"c": (0.0, 0.5)}, r"a\[1\] must sum to 0.5, got 1.0"),
        ({"a": ((0.0,), (1.0,))}, "same number of entries"),
    ],
)
def test_a_malformed_implicit_tableau(change, says):
    whole = {"name": "x", "order": 2, "c": (0.0, 1.0), "a": ((0.0, 0.0), (0.5, 0.5)), "b": (0.5, 0.5)}
    with pytest.raises(ValueError, match=says):
        ImplicitTableau(**(whole | change))
