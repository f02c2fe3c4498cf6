"""The Tsitouras pair 5(4): seven stages, FSAL, with dense output of order 4.

Source: Ch. Tsitouras, Runge-Kutta pairs of order 5(4) satisfying only the first column simplifying assumption, Comput.
Math. Appl. 62 (2011), 770-775, table 1 and the interpolant of section 3, its products expanded to powers of theta.

The numbers that the paper prints as b_hat are b - b_hat, and the last one has the wrong sign: with 1/66 they sum to
2/66 instead of zero, and b - error satisfies no condition of order 1 to 4; with -1/66 it satisfies all of them, to
1e-15 (tests/methods/test_tableau.py).
"""

from ..tableau import Tableau

_B = (
    0.09646076681806523,
    1 / 100,
    0.4798896504144996,
    1.379008574103742,
    -3.290069515436081,
    2.324710524099774,
    0.0,
)

TABLEAU = Tableau(
    name="tsit5",
    order=5,
    c=(0.0, 161 / 1000, 327 / 1000, 9 / 10, 0.9800255409045097, 1.0, 1.0),
    a=(
        (),
        (161 / 1000,),
        (-0.008480655492356989, 0.335480655492357),
        (2.897153057105493, -6.359448489975075, 4.362295432869581),
        (5.325864828439257, -11.74888356406283, 7.495539342889836, -0.09249506636175525),
        (5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401, -0.028269050394068383),
        _B[:-1],
    ),
    b=_B,
    error=(
        0.001780011052225777,
        0.0008164344596567469,
        -0.007880878010261995,
        0.1447110071732629,
        -0.5823571654525552,
        0.45808210592918697,
        -1 / 66,
    ),
    embedded_order=4,
    fsal=True,
    dense=(
        (1.0, -2.763706197274826, 2.9132554618219126, -1.0530884977290216),
        (0.0, 0.1317, -0.2234, 0.1017),
        (0.0, 3.930296236894751, -5.941033872131505, 2.490627285651253),
        (0.0, -12.411077166933676, 30.338188630282318, -16.548102889244902),
        (0.0, 37.50931341651104, -88.1789048947664, 47.37952196281928),
        (0.0, -27.896526289197286, 65.09189467479368, -34.87065786149661),
        (0.0, 1.5, -4.0, 2.5),
    ),
    dense_order=4,
)
