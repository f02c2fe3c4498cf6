"""Heun's methods: order 2 (the explicit trapezoidal rule) with embedded Euler step, and order 3.

Source: K. Heun, Neue Methoden zur approximativen Integration der Differentialgleichungen einer unabhaengigen
Veraenderlichen, Z. Math. Phys. 45 (1900), 23-38; Hairer, Norsett & Wanner I, table II.1.1. The error estimate of `HEUN`
is b - b_hat with b_hat = (1, 0), the Euler step.
"""

from ..tableau import Tableau

HEUN = Tableau(
    name="heun",
    order=2,
    c=(0.0, 1.0),
    a=((), (1.0,)),
    b=(1 / 2, 1 / 2),
    error=(-1 / 2, 1 / 2),
    embedded_order=1,
)

HEUN3 = Tableau(
    name="heun3",
    order=3,
    c=(0.0, 1 / 3, 2 / 3),
    a=((), (1 / 3,), (0.0, 2 / 3)),
    b=(1 / 4, 0.0, 3 / 4),
)
