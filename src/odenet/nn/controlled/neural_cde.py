"""Neural controlled differential equations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Unpack, final

from torch import nn

from ...api.option_types import SolveOptions
from ...series.control_path import ControlPath
from ...series.series import Series
from .controlled_model import ControlName
from .solved_cde import SolvedCDE


@final
class NeuralCDE(SolvedCDE):
    """dz = field(s, z) dX, driven by a path X through the series.

    Kidger et al. 2020, "Neural controlled differential equations for irregular time series"; Morrill et al. 2021,
    "Neural controlled differential equations for online prediction tasks".

    channels: of the series. hidden: size of z. out: size of a linear readout; None: z itself. field: f(s, z), (N,
    hidden, channels of the path), or a module with prod(s, z, dX), (N, hidden), for N states z (N, hidden), where a
    sample may have several; s is () or (N,). None: a `CDEField`, or with rank= a `LowRankCDEField`. s is the number of
    the row (twice that, if rectilinear), so that samples share it; time is the first channel of X. control, online,
    counts: see `ControlledModel`; "rectilinear" is online in any case. path_channels: of the path, where `control` is a
    function. static: number of static features, which the initial state depends on. solve_options: of `odenet.solve`,
    by default rtol=1e-4, atol=1e-6, and gradient="backprop" where the graph is small; steps end at the knots of the
    path.

    forward(series, ts=None), states(series): see `ControlledModel`. stats: counts of the last solve.

    Raises TypeError or ValueError for a wrong argument, and a `SolveError` if the solve fails.

    >>> import torch, odenet
    >>> series = odenet.series.from_lists([[0.0, 0.5, 2.0], [0.1, 0.2]], [[1.0, 2.0, 0.5], [3.0, 1.0]])
    >>> model = odenet.nn.NeuralCDE(channels=1, hidden=8, out=2)
    >>> model(series).shape, model(series, torch.linspace(0, 2, 5)).shape
    (torch.Size([2, 2]), torch.Size([2, 5, 2]))
    """

    def __init__(
        self,
        channels: int,
        hidden: int = 32,
        out: int | None = None,
        field: nn.Module | None = None,
        rank: int | None = None,
        control: ControlName | Callable[[Series], ControlPath] = "linear",
        online: bool = False,
        counts: bool = False,
        path_channels: int | None = None,
        static: int = 0,
        **solve_options: Unpack[SolveOptions],
    ) -> None:
        online = online or control == "rectilinear"
        super().__init__(
            channels, hidden, out, static, control, online, counts, path_channels, field, rank, solve_options
        )
