"""CNF: a density by the flow of a vector field."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Unpack, final

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from ...api.option_types import SolveOptions
from ...core.serialization import short_repr
from ...core.validate import number, one_of
from ...gradients.gradient import Stats
from ..layer import fixed_times, layer_times
from .base import base_log_prob, base_samples, checked_base, first_event_shape
from .batches import OfEvents, batch_of_context, check_samples, event_shape_of, parameter_like, sample_size
from .dynamics import FlowSolver, checked_solve_options
from .field_check import FieldCheck
from .flow_distribution import FlowDistribution, FlowTransform
from .normalisation import NORMS, FlowNorm
from .regularisers import Regulariser, Weights, weighted
from .samplers import refuse_sampler
from .traces import Field, NoiseName, Trace, TraceName, trace_by_name

Shape = int | Sequence[int]


@final
class CNF(OfEvents, Distribution):
    """A continuous normalizing flow: the density of x(ts[1]), where dx/dt = field(t, x) and x(ts[0]) is of the base.

    Chen et al. 2018, section 4: d log p(x(t))/dt = -trace(df/dx), which is solved with x. Grathwohl et al. 2019,
    "FFJORD": trace estimates, stacks of blocks.

    field: f(t, x) or f(t, x, context) with x (B, *event), t () or, with per_sample, (B,); each row of the result
        depends on its own row of x alone. A sequence of fields is a stack of blocks, the base's side first.
    base: the distribution at ts[0], over whole events; None: the standard normal. A module that gives a distribution
        for a context is one too.
    trace: "exact": in closed form for `MLPField` and `ConcatSquashField` (or a field with `with_trace`), else by D
        vector-Jacobian products; "hutchinson" or "hutch++": estimates, unbiased in the log-density, with directions
        that are drawn once a solve. Or a `Trace`.
    samples: random directions of an estimate for each sample. noise: "rademacher" or "gaussian".
    regularisers: names, or a dict of names and weights in `loss`: integrals along the solve that step sizes do not
        depend on. "kinetic" and "jacobian" (RNODE), "taylor" (TayNODE, the second derivative), "transport" (half of
        the kinetic energy: OT-Flow's cost). Or `Regulariser` objects in the place of names.
    ts: the times of base and data.
    norm: "batch" or "act": a normalisation before, between and after the blocks, as in FFJORD; needs event_shape.
    steer: b of STEER: in training the solve of `log_prob` starts at a time drawn from ts[1] +- b (Ghosh et al. 2020).
    event_shape: of one sample; by default the base's, (field.dim,), or that of the first vectors seen.
    solve_options: of `odenet.solve`: method, rtol, atol, gradient, per_sample, compile and so on.

    It is a `torch.distributions.Distribution`; `distribution(context)` is one under a context, and `transform(context)`
    a `Transform`. forward(x, context) is log_prob. stats: counts of the last solve, of each block in a stack.

    Raises TypeError or ValueError for a wrong argument, and a `SolveError` if a solve fails.

    >>> import torch, odenet
    >>> flow = odenet.nn.CNF(odenet.nn.MLPField(2))
    >>> flow.log_prob(torch.zeros(5, 2)).shape, flow.sample((3,)).shape
    (torch.Size([5]), torch.Size([3, 2]))
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 # pyright: ignore[reportIncompatibleMethodOverride]  as there

    def __init__(
        self,
        field: Field | Sequence[Field],
        base: Distribution | Callable[..., Distribution] | None = None,
        trace: TraceName | Trace = "exact",
        samples: int = 1,
        regularisers: Weights | Mapping[Regulariser, float] = (),
        *,
        noise: NoiseName = "rademacher",
        ts: Sequence[float] = (0.0, 1.0),
        norm: Literal["batch", "act"] | None = None,
        steer: float = 0.0,
        event_shape: Shape | None = None,
        **solve_options: Unpack[SolveOptions],
    ) -> None:
        nn.Module.__init__(self)
        fields = [FieldCheck(f).field for f in _fields(field)]
        self.field = fields[0] if len(fields) == 1 else _stack(fields)
        self.ts, self.steer = fixed_times(ts), number("steer", steer)
        if len(self.ts) != 2 or self.ts[0] == self.ts[1]:
            raise ValueError(f"ts must be two different times, those of base and data; got {self.ts}")
        if not 0.0 <= self.steer < abs(self.ts[1] - self.ts[0]):
            raise ValueError(f"steer must be zero or positive, and less than the length of ts; got {steer!r}")
        self.base = checked_base(base)
        self.trace = trace_by_name(trace, samples, noise)
        refuse_sampler(solve_options.get("method"))
        self.regularisers, self.solve_options = weighted(regularisers), checked_solve_options("CNF", solve_options)
        self._kept_solvers: list[FlowSolver] = []
        self._event_shape_known = first_event_shape(event_shape, base, fields[0])
        self.norms = nn.ModuleList(self._made_norms(norm, len(fields)))

    def _made_norms(self, norm: str | None, blocks: int) -> list[FlowNorm]:
        if norm is None:
            return []
        kind = NORMS[one_of("norm", norm, NORMS)]
        if self._event_shape_known is None:
            raise ValueError(f"norm={norm!r} needs the shape of a sample: give event_shape=")
        return [kind(self._event_shape_known) for _ in range(blocks + 1)]

    @property
    def _solvers(self) -> list[FlowSolver]:
        """A solver for each block."""
        fields = _fields(self.field)
        kept = self._kept_solvers
        if len(kept) != len(fields) or any(s.field is not f for s, f in zip(kept, fields, strict=True)):
            kept = [FlowSolver(f, self.trace, self.regularisers, self.solve_options) for f in fields]
            self._kept_solvers = kept
        return kept

    @property
    def event_shape(self) -> torch.Size:
        return torch.Size(self.known_event_shape)

    @property
    def batch_shape(self) -> torch.Size:
        return torch.Size()

    @property
    def has_rsample(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """False for a base without `rsample`: samples are then differentiable in the field and the context alone."""
        return not isinstance(self.base, Distribution) or self.base.has_rsample

    @property
    def support(self) -> Any:
        return constraints.independent(constraints.real, len(self.known_event_shape))

    @property
    def stats(self) -> Stats | tuple[Stats | None, ...] | None:
        """Counts of the last solve; in a stack those of each block."""
        counts = tuple(solver.stats for solver in self._solvers)
        return counts[0] if len(counts) == 1 else counts

    def expand(self, batch_shape: Any, _instance: Any = None) -> FlowDistribution:
        return FlowDistribution(self, None, torch.Size(batch_shape))

    def distribution(self, context: Tensor | None = None) -> FlowDistribution:
        """The distribution under a context, (..., C) or labels (...); its batch shape is (...)."""
        if context is None:
            return FlowDistribution(self, None, torch.Size())
        labels = not context.is_floating_point()
        return FlowDistribution(self, context, context.shape if labels else context.shape[:-1])

    def transform(self, context: Tensor | None = None) -> FlowTransform:
        """The map from the base to the data under a context."""
        return FlowTransform(self, context)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.log_prob(x, context)

    def log_prob(  # pyright: ignore[reportIncompatibleMethodOverride]  x, as everywhere here
        self, x: Tensor, context: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """log p(x | context) in nats, for x (..., *event): (...).

        context: a tensor with a row for each sample, or one for all. generator: of the directions of an estimate.
        """
        return self._log_prob(x, context, generator, False)[0]

    def log_prob_and_penalties(
        self, x: Tensor, context: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """log_prob, and the integral of each regulariser along the path of each sample, by name, of its shape."""
        return self._log_prob(x, context, generator, True)

    def loss(self, x: Tensor, context: Tensor | None = None, *, generator: torch.Generator | None = None) -> Tensor:
        """The mean of -log_prob in nats, plus the mean penalties times their weights."""
        log_prob, penalties = self._log_prob(x, context, generator, True)
        total = -log_prob.mean()
        for name, (_, weight) in self.regularisers.items():
            total = total + weight * penalties[name].mean()
        return total

    def sample(
        self,
        sample_shape: Shape = (),
        context: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Samples (*sample_shape, *event), without gradients. context: it broadcasts with sample_shape.

        They are of the dtype of the first parameter, or where there is none PyTorch's default.
        """
        with torch.no_grad():
            return self.rsample(sample_shape, context, generator=generator)

    def rsample(
        self,
        sample_shape: Shape = (),
        context: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Samples (*sample_shape, *event), differentiable in the field, the base and the context.

        Raises ValueError where the base needs a gradient and has no `rsample`.
        """
        z, batch, args = self._base_samples(sample_shape, context, generator)
        for i, solver in enumerate(solvers := self._solvers):
            z = self._norm_inverse(i, z)[0]
            z = solver.flow(z, self._times(z, self.ts), args)
        return self._norm_inverse(len(solvers), z)[0].view(*batch, *self.known_event_shape)

    def sample_and_log_prob(
        self,
        sample_shape: Shape = (),
        context: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Samples (*sample_shape, *event) and their log-density, from one solve; both differentiable.

        generator: of the samples and the directions of an estimate. Raises as `rsample` does.
        """
        z, batch, args = self._base_samples(sample_shape, context, generator)
        log_prob = base_log_prob(self.base, z, args)
        x, log_det = self._to_data(z, args, generator)
        return x.view(*batch, *self.known_event_shape), (log_prob - log_det).view(batch)

    def to_base(
        self, x: Tensor, context: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """The base's point of each x (..., *event), and log |det dz/dx|, (...)."""
        rows, batch, args = self._rows(x, context)
        z, log_det, _ = self._to_base(rows, args, generator, self.ts)
        return z.view(*batch, *self.known_event_shape), log_det.view(batch)

    def to_data(
        self, z: Tensor, context: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """The data's point of each z (..., *event), and log |det dx/dz|, (...)."""
        rows, batch, args = self._rows(z, context)
        x, log_det = self._to_data(rows, args, generator)
        return x.view(*batch, *self.known_event_shape), log_det.view(batch)

    def _log_prob(
        self, x: Tensor, context: Tensor | None, generator: torch.Generator | None, regularised: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        rows, batch, args = self._rows(x, context)
        z, log_det, penalties = self._to_base(rows, args, generator, self._steered(generator), regularised)
        log_prob = base_log_prob(self.base, z, args) + log_det
        return log_prob.view(batch), {name: value.view(batch) for name, value in penalties.items()}

    def _rows(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, torch.Size, tuple[Tensor, ...]]:
        """x as (B, *event), its batch shape with the context's, and the context in a tuple, (B, ...)."""
        event = event_shape_of(x, self._event_shape_known)
        check_samples(x, self.field)
        if self.norms:
            check_samples(x, self.norms)
        batch, args = batch_of_context(context, x.shape[: x.ndim - len(event)], x.dtype)
        if self._event_shape_known is None:
            self._event_shape_known = event
        return x.expand(*batch, *event).reshape(-1, *event), batch, args

    def _to_base(
        self,
        x: Tensor,
        args: tuple[Tensor, ...],
        generator: torch.Generator | None,
        ts: tuple[Any, ...],
        regularised: bool = False,
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        log_det = x.new_zeros(len(x))
        penalties: dict[str, Tensor] = {}
        solvers = self._solvers
        for i in reversed(range(len(solvers))):
            x, change = self._norm_forward(i + 1, x)
            times = self._times(x, ts[::-1])
            x, of_block, integrals = solvers[i].flow_with_density(x, times, args, generator, regularised)
            log_det = log_det + change + of_block
            penalties = {name: penalties.get(name, 0.0) + value for name, value in integrals.items()}
        x, change = self._norm_forward(0, x)
        return x, log_det + change, penalties

    def _to_data(self, z: Tensor, args: tuple[Tensor, ...], generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        log_det = z.new_zeros(len(z))
        for i, solver in enumerate(solvers := self._solvers):
            z, change = self._norm_inverse(i, z)
            z, of_block, _ = solver.flow_with_density(z, self._times(z, self.ts), args, generator)
            log_det = log_det + change + of_block
        z, change = self._norm_inverse(len(solvers), z)
        return z, log_det + change

    def _norm_forward(self, i: int, x: Tensor) -> tuple[Tensor, Tensor | float]:
        return self.norms[i](x) if self.norms else (x, 0.0)

    def _norm_inverse(self, i: int, z: Tensor) -> tuple[Tensor, Tensor | float]:
        if not self.norms:
            return z, 0.0
        norm = self.norms[i]
        assert isinstance(norm, FlowNorm)
        return norm.inverse(z)

    def _times(self, x: Tensor, ts: tuple[Any, ...]) -> Tensor:
        if isinstance(ts[0], Tensor) or isinstance(ts[1], Tensor):
            return torch.stack([torch.as_tensor(t, dtype=x.dtype, device=x.device) for t in ts])
        return layer_times(ts, x.dtype, x.device)

    def _steered(self, generator: torch.Generator | None) -> tuple[Any, ...]:
        """The times of base and data; in training the second one is moved at random by up to `steer`."""
        start, end = self.ts
        return (
            (start, end + self.steer * (2.0 * torch.rand((), generator=generator) - 1.0))
            if self.training and self.steer
            else (start, end)
        )

    def _base_samples(
        self, shape: Shape, context: Tensor | None, generator: torch.Generator | None
    ) -> tuple[Tensor, torch.Size, tuple[Tensor, ...]]:
        """Samples of the base (B, *event), the batch shape, and the context in a tuple, (B, ...)."""
        like = parameter_like(self)
        batch, args = batch_of_context(context, sample_size(shape), None if like is None else like.dtype)
        z = base_samples(self.base, self.known_event_shape, batch.numel(), args, like, generator)
        return z, batch, args

    def extra_repr(self) -> str:
        options = "".join(f", {k}={short_repr(v)}" for k, v in self.solve_options.items())
        return f"trace={self.trace!r}, ts={self.ts}{options}"


def _fields(field: Any) -> list[Field]:
    fields = list(field) if isinstance(field, (list, tuple, nn.ModuleList)) else [field]
    if not fields:
        raise ValueError("field must be a field, or a sequence of them; got an empty sequence")
    return fields


def _stack(fields: list[Field]) -> nn.ModuleList | list[Field]:
    """The blocks as the module's own, so that it has their parameters."""
    modules = [f for f in fields if isinstance(f, nn.Module)]
    return nn.ModuleList(modules) if len(modules) == len(fields) else fields
