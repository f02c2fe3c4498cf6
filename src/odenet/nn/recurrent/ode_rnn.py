"""ODE-RNN: an ordinary differential equation between observations, a recurrent cell at each."""

from __future__ import annotations

from typing import Literal, Unpack, final

from torch import Tensor, nn

from ...api.option_types import SolveOptions
from ...core.validate import one_of
from ..fields import MLPField
from ..series_options import check_series_options
from .gap_flow import GapFlow
from .recurrence import Recurrence

CELLS = {"gru": nn.GRUCell, "rnn": nn.RNNCell}


@final
class ODERNN(Recurrence):
    """h evolves by dh/dt = field(t, h) between rows; at a row a cell takes the values and which of them are observed.

    Rubanova et al. 2019, "Latent ODEs for irregularly-sampled time series", section 3.1.

    channels: of the series. hidden: size of h. out: size of a linear readout; None: h itself. field: f(t, h) with t
    (B,) in the scale of the model and h (B, hidden); by default an `MLPField` without t. cell: "gru" or "rnn". static:
    number of static features, from which h begins. solve_options: of `odenet.solve` over each gap, whose length counts
    as 1: by default method="midpoint", step=0.5, gradient="backprop", where a gap of more than a tenth of the training
    data's span is solved in equal parts, each of which counts as a gap. With `step` there are no parts. With rtol, atol
    or a controller the other defaults are those of `odenet.solve`, and the samples of a batch share their steps unless
    per_sample=True.

    A row without any value changes nothing. forward(series, ts=None), states(series), before(series): see `Recurrence`.
    Outputs are those after a readout, in the units of the readout.

    Raises TypeError or ValueError for a wrong argument, and a `SolveError` if a solve fails.
    """

    def __init__(
        self,
        channels: int,
        hidden: int = 32,
        out: int | None = None,
        field: nn.Module | None = None,
        cell: Literal["gru", "rnn"] = "gru",
        static: int = 0,
        **solve_options: Unpack[SolveOptions],
    ) -> None:
        check_series_options(type(self), solve_options)
        super().__init__(channels, hidden, out, static)
        field = MLPField(hidden, (hidden,), time=False) if field is None else field
        self.flow = GapFlow(field, **solve_options)
        self.cell = CELLS[one_of("cell", cell, CELLS)](2 * channels, hidden)

    def advance(self, h: Tensor, t0: Tensor, t1: Tensor) -> Tensor:
        return self.flow(h, t0, t1)

    def update(self, h: Tensor, inputs: Tensor) -> Tensor:
        return self.cell(inputs, h)
