"""The explicit Euler method: order 1, one stage.

Source: L. Euler, Institutionum calculi integralis I (1768), problem 85; Hairer, Norsett & Wanner I, eq. (I.7.3).
"""

from ..tableau import Tableau

TABLEAU = Tableau(
    name="euler",
    order=1,
    c=(0.0,),
    a=((),),
    b=(1.0,),
)
