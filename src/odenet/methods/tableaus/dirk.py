"""Diagonally implicit methods of order 2: the stages are solved one by one, each by a system of the size of the state.

Sources: trapezoid, Crank & Nicolson 1947 (A-stable); sdirk2, R. Alexander, Diagonally implicit Runge-Kutta methods for
stiff ODEs, SIAM J. Numer. Anal. 14 (1977), 1006-1021 (L-stable); trbdf2, R. E. Bank et al., Transient simulation of
silicon devices and circuits, IEEE Trans. CAD 4 (1985), 436-451, as a Runge-Kutta method in M. E. Hosea, L. F. Shampine,
Analysis and implementation of TR-BDF2, Appl. Numer. Math. 20 (1996), 21-37 (L-stable).
"""

from math import sqrt

from ..implicit_tableau import ImplicitTableau

_G = 1 - sqrt(2) / 2
_W = sqrt(2) / 4

TRAPEZOID = ImplicitTableau(name="trapezoid", order=2, c=(0.0, 1.0), a=((0.0, 0.0), (1 / 2, 1 / 2)), b=(1 / 2, 1 / 2))

SDIRK2 = ImplicitTableau(name="sdirk2", order=2, c=(_G, 1.0), a=((_G, 0.0), (1 - _G, _G)), b=(1 - _G, _G))

TRBDF2 = ImplicitTableau(
    name="trbdf2",
    order=2,
    c=(0.0, 2 * _G, 1.0),
    a=((0.0, 0.0, 0.0), (_G, _G, 0.0), (_W, _W, _G)),
    b=(_W, _W, _G),
    error=(_W - (1 - _W) / 3, _W - (3 * _W + 1) / 3, _G - _G / 3),  # b - b_hat, with b_hat of order 3
    error_order=3,
    dense=((sqrt(2) / 2, -_W), (sqrt(2) / 2, -_W), (1 - sqrt(2), sqrt(2) / 2)),
    predictor=((0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (-sqrt(2) / 2, 1 + sqrt(2) / 2, 0.0)),
)
