"""Ralston's method of order 2 with embedded Euler step: 2(1), two stages.

Source: A. Ralston, Runge-Kutta methods with minimum error bounds, Math. Comp. 16 (1962), 431-437: the
two-stage method of order 2 with the least bound on its truncation error. The error estimate is b - b_hat with
b_hat = (1, 0).
"""

from ..tableau import Tableau

TABLEAU = Tableau(
    name="ralston",
    order=2,
    c=(0.0, 2 / 3),
    a=((), (2 / 3,)),
    b=(1 / 4, 3 / 4),
    error=(-3 / 4, 3 / 4),
    embedded_order=1,
)
