"""The exact solution and gradient of a nonlinear equation, by SciPy: forward sensitivities at tight tolerances."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.integrate import solve_ivp

Array = np.ndarray[Any, Any]


class Outputs(NamedTuple):
    """For each of m times: y (m, n), its derivatives by that time and by t0 (m, n), and its Jacobians.

    by_y0: (m, n, n). by_matrix: (m, n, n, n), as y_i by A_ab. by_k: (m, n, n).
    """

    y: Array
    by_t: Array
    by_t0: Array
    by_y0: Array
    by_matrix: Array
    by_k: Array


class Gradients(NamedTuple):
    """The gradient of sum_j w_j |y(t_j)|^2 by y0, by each t_j, by t0 and by the parameters.

    Of complex inputs as PyTorch has it: the derivative by the real part, plus i times that by the imaginary part.
    """

    y0: Array
    t: Array
    t0: Array
    A: Array
    k: Array


@dataclass(frozen=True)
class Equation:
    """dy_i/dt = sin((A y)_i) cos(w t) - k_i y_i + c_i. Analytic in y, A and k, so complex ones are as simple."""

    A: Array
    k: Array
    c: Array
    w: float

    def slope(self, t: float, y: Array) -> Array:
        return np.sin(self.A @ y) * np.cos(self.w * t) - self.k * y + self.c

    def _variation(self, t: float, state: Array) -> Array:
        """Of y and of M = dy/d(y0, A, k): M' = df/dy M + df/d(y0, A, k)."""
        n = len(self.k)
        y, M = state[:n], state[n:].reshape(n, -1)
        bend = np.cos(self.A @ y) * np.cos(self.w * t)
        out = (bend[:, None] * self.A - np.diag(self.k)) @ M
        each = np.arange(n)
        out[:, n : n + n * n].reshape(n, n, n)[each, each] += bend[:, None] * y
        out[each, n + n * n + each] -= y
        return np.concatenate([self.slope(t, y), out.ravel()])

    def solve(self, t0: float, y0: Array, times: Array) -> Outputs:
        """From y0 at t0 to all of `times`, in any order, on one side of t0."""
        n, m = len(y0), len(times)
        M0 = np.hstack([np.eye(n), np.zeros((n, n * n + n))])
        state = np.concatenate([y0, M0.ravel().astype(y0.dtype)])
        end = times[np.argmax(np.abs(times - t0))]
        states = np.tile(state, (m, 1))
        if end != t0:
            solved = solve_ivp(self._variation, (t0, end), state, "DOP853", dense_output=True, rtol=1e-12, atol=1e-13)
            assert solved.success, solved.message
            states = solved.sol(times).T
        ys, Ms = states[:, :n], states[:, n:].reshape(m, n, -1)
        by_y0 = Ms[:, :, :n]
        return Outputs(
            ys,
            np.stack([self.slope(t, y) for t, y in zip(times, ys, strict=True)]),
            -by_y0 @ self.slope(t0, y0),
            by_y0,
            Ms[:, :, n : n + n * n].reshape(m, n, n, n),
            Ms[:, :, n + n * n :],
        )


def gradients(out: Outputs, weights: Array) -> Gradients:
    """Of the sum of weights (m, n), real, times |y|^2."""
    bar = 2 * weights * out.y

    def pull(jacobian: Array) -> Array:
        return np.tensordot(bar, jacobian.conj(), 2)

    t, t0 = ((bar.conj() * x).real.sum(1) for x in (out.by_t, out.by_t0))
    return Gradients(pull(out.by_y0), t, t0.sum(), pull(out.by_matrix), pull(out.by_k))
