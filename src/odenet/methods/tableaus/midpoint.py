"""The explicit midpoint method: order 2, two stages.

Source: C. Runge, Ueber die numerische Aufloesung von Differentialgleichungen, Math. Ann. 46 (1895), 167-178;
Hairer, Norsett & Wanner I, eq. (II.1.4).
"""

from ..tableau import Tableau

TABLEAU = Tableau(
    name="midpoint",
    order=2,
    c=(0.0, 1 / 2),
    a=((), (1 / 2,)),
    b=(0.0, 1.0),
)
