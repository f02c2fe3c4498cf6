"""The Radau IIA methods: collocation with the end of the step as last node, order 2s - 1, L-stable.

Source: B. L. Ehle, On Pade approximations to the exponential function and A-stable methods for the numerical solution
of initial value problems, University of Waterloo (1969); Hairer & Wanner II, tables IV.5.5 and IV.5.6. The method with
one stage is the implicit Euler method.
"""

from math import sqrt

from ..implicit_tableau import ImplicitTableau, collocation

_6 = sqrt(6)

IMPLICIT_EULER = ImplicitTableau(name="implicit_euler", order=1, c=(1.0,), a=((1.0,),), b=(1.0,))

RADAU_IIA3 = ImplicitTableau(
    name="radauIIA3",
    order=3,
    c=(1 / 3, 1.0),
    a=((5 / 12, -1 / 12), (3 / 4, 1 / 4)),
    b=(3 / 4, 1 / 4),
)

_A5 = (
    ((88 - 7 * _6) / 360, (296 - 169 * _6) / 1800, (-2 + 3 * _6) / 225),
    ((296 + 169 * _6) / 1800, (88 + 7 * _6) / 360, (-2 - 3 * _6) / 225),
    ((16 - _6) / 36, (16 + _6) / 36, 1 / 9),
)
_C5 = ((4 - _6) / 10, (4 + _6) / 10, 1.0)
_G = 1 / (3 + 3 ** (2 / 3) - 3 ** (1 / 3))  # the real eigenvalue of _A5
# Hairer & Wanner II, (IV.8.19): e for the increments z_i of the states, converted to weights of the slopes
_STATE_WEIGHTS = ((-13 - 7 * _6) / 3, (-13 + 7 * _6) / 3, -1 / 3)
_ERROR = tuple(_G * sum(e * row[j] for e, row in zip(_STATE_WEIGHTS, _A5, strict=True)) for j in range(3))

RADAU_IIA5 = ImplicitTableau(
    name="radauIIA5",
    order=5,
    c=_C5,
    a=_A5,
    b=((16 - _6) / 36, (16 + _6) / 36, 1 / 9),
    error=_ERROR,
    start=_G,
    error_order=4,
    dense=collocation(_C5),
)
