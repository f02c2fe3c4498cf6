"""Heun's method of order 2 (the explicit trapezoidal rule) with embedded Euler: 2(1), two stages.

Source: K. Heun, Neue Methoden zur approximativen Integration der Differentialgleichungen einer unabhaengigen
Veraenderlichen, Z. Math. Phys. 45 (1900), 23-38. The estimate is b - b_hat with b_hat = (1, 0), the Euler step.
"""

from .tableau import Tableau

TABLEAU = Tableau(
    name="heun",
    order=2,
    c=(0.0, 1.0),
    a=((), (1.0,)),
    b=(1 / 2, 1 / 2),
    error=(-1 / 2, 1 / 2),
    embedded_order=1,
)
