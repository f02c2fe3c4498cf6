"""A trained flow in the units of its data: its density, its samples, its paths, and what settings.json keeps for them.

z are the samples of the model and x the data, as in `density_data`. All solves that do not train take the method and
the tolerance of EVALUATION, whatever the training took, so that likelihoods compare between runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from ...api.solve import solve
from ...core.validate import describe_shape
from ...nn import CNF, FlowMatching
from ...nn.flows.batches import sample_size
from ...nn.flows.samplers import SAMPLERS
from ..user_error import UserError, first_line
from .density_data import DensityData, Transform

EVALUATION: dict[str, Any] = {"method": "dopri5", "rtol": 1e-5, "atol": 1e-5}
_ROWS = 10_000  # of one solve


def info_of(data: DensityData) -> dict[str, Any]:
    """What a flow needs of its data once it is trained, in JSON's types."""
    t = data.transform
    return {
        "columns": list(data.columns),
        "mean": t.mean.tolist(),
        "std": t.std.tolist(),
        "levels": t.levels,
        "alpha": t.alpha,
        "quanta": data.quanta.tolist(),
        "origin": data.splits["train"].amin(0).tolist(),  # of the lattice of a discrete column
    }


def units_of(info: Mapping[str, Any]) -> DensityData:
    """The data of `info_of`, without rows."""
    mean, std, quanta = (torch.tensor(info[name], dtype=torch.float64) for name in ("mean", "std", "quanta"))
    return DensityData({}, info["columns"], quanta, Transform(mean, std, info["levels"], info["alpha"]))


def log_prob(net: nn.Module, z: Tensor) -> Tensor:
    """The log-density of a flow at z, (N, D) -> (N,), in nats, with the exact trace."""
    field, end = _field(net)
    flow = CNF(field, ts=(0.0, end), event_shape=(z.shape[1],), **EVALUATION)
    with torch.no_grad():
        return torch.cat([flow.log_prob(part) for part in z.split(_ROWS)])


def nats(net: nn.Module, info: Mapping[str, Any], x: Tensor) -> Tensor:
    """The log-density at rows of data x, (N, D) -> (N,), in nats, in the units of the data.

    A value of a discrete column stands for the interval of its noise, and its middle is taken.
    """
    data = units_of(info)
    z = data.transform.to_model(x.double() + 0.5 * data.quanta)
    like = next(net.parameters())
    wrong = ~z.isfinite()
    if bool(wrong.any()):
        row, column = wrong.nonzero()[0].tolist()
        range_of = f"from 0 to {info['levels'] - 1}" if info["levels"] else "of a usable size"
        raise UserError(
            f"row {row + 1} of column {info['columns'][column]!r} is {x[row, column]:g}: give it {range_of}"
        )
    given = log_prob(net, z.to(like)).double().cpu()
    return data.nats(given, z)


def samples(net: nn.Module, info: Mapping[str, Any], n: int, method: str = "", steps: int | None = None) -> Tensor:
    """n samples (n, D) in the units of the data, float64; discrete columns are on their lattice again.

    The noise that discrete columns got in training is taken off: digits are whole numbers from 0 to 16. method, steps:
    of the solver, or of a sampler of flow matching; by default those of EVALUATION.
    """
    field, _ = _field(net)
    dim = len(info["columns"])
    net_of = net if isinstance(net, FlowMatching) else FlowMatching(field, event_shape=(dim,))
    options: dict[str, Any] = dict(EVALUATION)
    if steps is not None:
        options = {"steps": steps, "method": "midpoint"}
    if method:
        options["method"] = method
    if method and not isinstance(net, FlowMatching):
        _refuse_sampler(method)
    try:
        with torch.no_grad():
            parts = [net_of.sample((min(_ROWS, n - i),), **options) for i in range(0, n, _ROWS)]
    except ValueError as error:
        text = first_line(error).replace("give steps= or grid=", "give --steps")
        raise UserError(f"--method, --steps: {text}") from None
    return quantised(info, units_of(info).transform.to_data(torch.cat(parts).double().cpu()))


def quantised(info: Mapping[str, Any], x: Tensor) -> Tensor:
    """x (N, D) with discrete columns on their lattice: the noise of [0, quantum) that was added is taken off."""
    quanta, origin = (torch.tensor(info[name], dtype=torch.float64) for name in ("quanta", "origin"))
    steps = ((x - origin) / quanta).floor()
    if info["levels"]:
        steps = steps.clamp(0, info["levels"] - 1)  # rounding gives the end of the range itself
    return torch.where(quanta > 0, origin + quanta * steps, x)


def paths(net: nn.Module, z0: Tensor, times: int) -> Tensor:
    """The states of samples z0 (N, D) of the noise on their way to the data, (times, N, D), evenly spaced in t."""
    field, end = _field(net)
    with torch.no_grad():
        return solve(field, z0, torch.linspace(0.0, end, times).to(z0), **EVALUATION).ys


@final
class FlowOfData(nn.Module):
    """A trained flow in the units of its data, as `odenet predict` and `odenet sample` have it.

    flow: the `CNF` or `FlowMatching` of the standardised columns. info: as `info_of` gives it.
    """

    def __init__(self, flow: nn.Module, info: Mapping[str, Any]) -> None:
        super().__init__()
        self.flow, self.info = flow, info

    def forward(self, x: Tensor) -> Tensor:
        return self.log_prob(x)

    def log_prob(self, x: Tensor) -> Tensor:
        """The log-density of rows (N, D) in nats, (N,), float64, without gradients; see `nats`."""
        if not isinstance(x, Tensor) or x.shape[1:] != (len(self.info["columns"]),):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f"x must be rows of the columns {self.info['columns']}; got {describe_shape(x)}")
        return nats(self.flow, self.info, x)

    def sample(self, sample_shape: int | Sequence[int] = (), method: str = "", steps: int | None = None) -> Tensor:
        """Samples (*sample_shape, D), float64; see `samples`."""
        shape = sample_size(sample_shape)
        return samples(self.flow, self.info, shape.numel(), method, steps).view(*shape, -1)


def _field(net: nn.Module) -> tuple[Any, float]:
    """The field of a flow, and the time of the data; that of the noise is 0."""
    if isinstance(net, FlowMatching):
        return net.field, float(net.path.end)
    assert isinstance(net, CNF)
    return net.field, float(net.ts[1])


def _refuse_sampler(method: str) -> None:
    from ...api.checks import method as method_named

    if method in SAMPLERS:
        raise UserError(f"--method {method} is a sampler of flow matching, and this run is a cnf: take dopri5, say")
    try:
        method_named(method)
    except ValueError as error:
        raise UserError(f"--method: {first_line(error)}") from None
