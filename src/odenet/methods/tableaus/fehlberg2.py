"""Fehlberg's pair 1(2), with the solution of order 2: three stages.

Source: E. Fehlberg, Low-order classical Runge-Kutta formulas with stepsize control, NASA TR R-315 (1969), p. 20. The
estimate is b - b_hat with b_hat = (1/256, 255/256, 0). The last stage is evaluated at the solution of order 1, so that
with the solution of order 2 it is not the first stage of the next step.
"""

from ..tableau import Tableau

TABLEAU = Tableau(
    name="fehlberg2",
    order=2,
    c=(0.0, 1 / 2, 1.0),
    a=((), (1 / 2,), (1 / 256, 255 / 256)),
    b=(1 / 512, 255 / 256, 1 / 512),
    error=(-1 / 512, 0.0, 1 / 512),
    embedded_order=1,
)
