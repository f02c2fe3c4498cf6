"""Butcher's method of order 5 in six stages, with the weights of Boole's rule.

No weight is negative and the coefficients are small, so that it stays accurate in steps that are long for the problem;
methods of order 5 designed as parts of embedded pairs do not. It starts `implicit_adams`, and is no method by name.

Source: J. C. Butcher, On Runge-Kutta processes of high order, J. Austral. Math. Soc. 4 (1964), 179-194.
"""

from ..tableau import Tableau

TABLEAU = Tableau(
    name="butcher5",
    order=5,
    c=(0.0, 1 / 4, 1 / 4, 1 / 2, 3 / 4, 1.0),
    a=(
        (),
        (1 / 4,),
        (1 / 8, 1 / 8),
        (0.0, -1 / 2, 1.0),
        (3 / 16, 0.0, 0.0, 9 / 16),
        (-3 / 7, 2 / 7, 12 / 7, -12 / 7, 8 / 7),
    ),
    b=(7 / 90, 0.0, 32 / 90, 12 / 90, 32 / 90, 7 / 90),
)
