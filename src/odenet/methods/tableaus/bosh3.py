"""The Bogacki-Shampine pair 3(2): four stages, FSAL.

Source: P. Bogacki, L. F. Shampine, A 3(2) pair of Runge-Kutta formulas, Appl. Math. Lett. 2 (1989), 321-325. Their
embedded weights are b_hat = (7/24, 1/4, 1/3, 1/8). The interpolant is cubic Hermite, as in the paper (`dense` is None).
"""

from ..tableau import Tableau

_B = (2 / 9, 1 / 3, 4 / 9, 0.0)

TABLEAU = Tableau(
    name="bosh3",
    order=3,
    c=(0.0, 1 / 2, 3 / 4, 1.0),
    a=((), (1 / 2,), (0.0, 3 / 4), _B[:-1]),
    b=_B,
    error=(-5 / 72, 1 / 12, 1 / 9, -1 / 8),
    embedded_order=2,
    fsal=True,
)
