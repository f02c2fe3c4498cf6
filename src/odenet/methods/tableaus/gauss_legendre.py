"""The Gauss methods: collocation at the Gauss-Legendre nodes, order 2s, A-stable and symplectic.

Source: J. C. Butcher, Implicit Runge-Kutta processes, Math. Comp. 18 (1964), 50-64; Hairer & Wanner II, tables IV.5.1
and IV.5.2.
"""

from math import sqrt

from ..implicit_tableau import ImplicitTableau

_3, _15 = sqrt(3), sqrt(15)

IMPLICIT_MIDPOINT = ImplicitTableau(name="implicit_midpoint", order=2, c=(1 / 2,), a=((1 / 2,),), b=(1.0,))

GL4 = ImplicitTableau(
    name="gl4",
    order=4,
    c=(1 / 2 - _3 / 6, 1 / 2 + _3 / 6),
    a=((1 / 4, 1 / 4 - _3 / 6), (1 / 4 + _3 / 6, 1 / 4)),
    b=(1 / 2, 1 / 2),
)

GL6 = ImplicitTableau(
    name="gl6",
    order=6,
    c=(1 / 2 - _15 / 10, 1 / 2, 1 / 2 + _15 / 10),
    a=(
        (5 / 36, 2 / 9 - _15 / 15, 5 / 36 - _15 / 30),
        (5 / 36 + _15 / 24, 2 / 9, 5 / 36 - _15 / 24),
        (5 / 36 + _15 / 30, 2 / 9 + _15 / 15, 5 / 36),
    ),
    b=(5 / 18, 4 / 9, 5 / 18),
)
