"""The Radau IIA methods: collocation with the end of the step as last node, order 2s - 1, L-stable.

Source: B. L. Ehle, On Pade approximations to the exponential function and A-stable methods for the numerical solution
of initial value problems, University of Waterloo (1969); Hairer & Wanner II, tables IV.5.5 and IV.5.6. With one stage
it is the implicit Euler method.
"""

from math import sqrt

from .implicit_tableau import ImplicitTableau

_6 = sqrt(6)

IMPLICIT_EULER = ImplicitTableau(name="implicit_euler", order=1, c=(1.0,), a=((1.0,),), b=(1.0,))

RADAU_IIA3 = ImplicitTableau(
    name="radauIIA3",
    order=3,
    c=(1 / 3, 1.0),
    a=((5 / 12, -1 / 12), (3 / 4, 1 / 4)),
    b=(3 / 4, 1 / 4),
)

RADAU_IIA5 = ImplicitTableau(
    name="radauIIA5",
    order=5,
    c=((4 - _6) / 10, (4 + _6) / 10, 1.0),
    a=(
        ((88 - 7 * _6) / 360, (296 - 169 * _6) / 1800, (-2 + 3 * _6) / 225),
        ((296 + 169 * _6) / 1800, (88 + 7 * _6) / 360, (-2 - 3 * _6) / 225),
        ((16 - _6) / 36, (16 + _6) / 36, 1 / 9),
    ),
    b=((16 - _6) / 36, (16 + _6) / 36, 1 / 9),
)
