"""FlowMatching: learns the field of a flow without solving it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, Unpack, cast, final

import torch
from torch import Tensor
from torch.distributions import Distribution

from ...api.option_types import SolveOptions
from ...api.solve import Solver
from ...core.affine_paths import AffinePath, CondOT, affine_path
from ...core.validate import describe, number
from ...gradients.gradient import Stats
from ..layer import layer_times
from .base import base_samples, checked_base, first_event_shape
from .batches import OfEvents, batch_of_context, check_samples, event_shape_of, parameter_like, sample_size
from .cnf import CNF, Shape
from .couplings import Coupling, check_pairs
from .couplings import coupling as coupling_by_name
from .field_check import FieldCheck
from .samplers import Times, sampler_options
from .traces import Field, TraceName
from .velocity import GuidedVelocity, VelocityOnPath, coefficients, null_like

PathName = Literal["cond_ot", "vp", "cosine", "linear_vp", "polynomial"]
CouplingName = Literal["independent", "ot", "sinkhorn", "bridge"]


class PathSample(NamedTuple):
    """Points on paths from noise to data: times t (B,), states x and velocities u (B, *event), and the context."""

    t: Tensor
    x: Tensor
    u: Tensor
    context: tuple[Tensor, ...]


@final
class FlowMatching(OfEvents):
    """A flow learned by regression on the velocity of paths from noise to data.

    Lipman et al. 2023, "Flow matching for generative modeling"; Tong et al. 2024, "Improving and generalizing
    flow-based generative models with minibatch optimal transport". Noise is at t = 0, data at t = 1.

    field: f(t, x) or f(t, x, context) with t () or (B,), x (B, *event); `odenet.nn.adapt` makes one of most networks.
    path: x_t = alpha(t) x1 + sigma(t) x0. "cond_ot" (straight), "vp" (diffusion), "cosine", "linear_vp",
        "polynomial", or an `AffinePath`.
    coupling: which x0 goes with which x1 in a batch. "independent"; "ot", optimal transport; "sinkhorn", entropic
        transport; "bridge", the Schroedinger bridge whose noise is `sigma` (Tong et al. 2024, 3.2.4). Or a `Coupling`.
    sigma: standard deviation of noise around the paths; of a bridge that of its Brownian motion.
    base: distribution of x0, over whole samples; None: the standard normal. `loss` may be given other x0.
    context_dropout: part of the contexts in training that are replaced by `null_context`, for classifier-free
        guidance. null_context: what stands for no context, of the shape of one; None: zeros, for floating contexts.
    event_shape: of one sample; by default the base's, (field.dim,), or that of the first vectors seen.

    forward(x1, x0, context) is loss. stats: counts of the last solve.

    Raises TypeError or ValueError for a wrong argument, and a `SolveError` if a solve fails.

    >>> import torch, odenet
    >>> flow = odenet.nn.FlowMatching(odenet.nn.MLPField(2))
    >>> flow.loss(torch.randn(100, 2)).shape, flow.sample((3,), method="midpoint", steps=8).shape
    (torch.Size([]), torch.Size([3, 2]))
    """

    def __init__(
        self,
        field: Field,
        path: PathName | AffinePath = "cond_ot",
        coupling: CouplingName | Coupling = "independent",
        sigma: float = 0.0,
        *,
        base: Distribution | None = None,
        context_dropout: float = 0.0,
        null_context: Tensor | None = None,
        event_shape: Shape | None = None,
    ) -> None:
        super().__init__()
        self._check = FieldCheck(field)
        self.field = self._check.field
        self.path, self.trained_path = affine_path(path), affine_path(path)
        self.sigma, self.context_dropout = number("sigma", sigma), number("context_dropout", context_dropout)
        if not 0.0 <= self.sigma < float("inf"):
            raise ValueError(f"sigma must be zero or positive, and finite; got {sigma!r}")
        if not 0.0 <= self.context_dropout < 1.0:
            raise ValueError(f"context_dropout must be at least 0 and below 1; got {context_dropout!r}")
        self.coupling, self.bridge = coupling_by_name(coupling, self.sigma), coupling == "bridge"
        if self.bridge and not isinstance(self.path, CondOT):
            raise ValueError(f"coupling='bridge' has a path of its own: leave path='cond_ot'; got {path!r}")
        self.base = checked_base(base)
        if null_context is not None and not isinstance(null_context, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(
                f"null_context must be a tensor, as torch.tensor(3) for a label; got {describe(null_context)}"
            )
        self.null_context = null_context
        self._event_shape_known = first_event_shape(event_shape, base, field)
        self._kept: tuple[tuple[Any, ...], Any] | None = None
        self._kept_cnf: Any = None  # not a submodule: it has the same field
        self.stats: Stats | None = None

    def forward(self, x1: Tensor, x0: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        return self.loss(x1, x0, context)

    def loss(
        self,
        x1: Tensor,
        x0: Tensor | None = None,
        context: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The mean squared error of the field's velocity at a random point of each path, ().

        x1: data (B, *event). x0: noise or other data (B, *event); None: samples of the base. context: a row for each
        sample. generator: of all random numbers.
        """
        at = self.path_sample(x1, x0, context, generator=generator)
        velocity = self._trained_velocity(at)
        if velocity.shape != at.u.shape:
            raise ValueError(
                f"field must return the shape of x, {tuple(at.u.shape)}; it returned {tuple(velocity.shape)}"
            )
        return (velocity - at.u).square().mean()

    def _trained_velocity(self, at: PathSample) -> Tensor:
        """The field's result at times (B,). An error of PyTorch gets a note that says how it was called."""
        field = self._checked_field(at.context)
        if torch.compiler.is_compiling():
            return field(at.t, at.x, *at.context)
        try:
            self._check.training_point(at.t, at.x, at.context)
            return field(at.t, at.x, *at.context)
        except RuntimeError as error:
            error.add_note(
                f"FlowMatching called field(t, x) with t of shape {tuple(at.t.shape)}, a time for each sample, and x "
                f"of shape {tuple(at.x.shape)}. odenet.nn.adapt makes a field of a network for other shapes of t"
            )
            raise

    def path_sample(
        self,
        x1: Tensor,
        x0: Tensor | None = None,
        context: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> PathSample:
        """Pairs of noise and data, a uniform time for each, and the points and velocities of their paths there."""
        event = event_shape_of(x1, self._event_shape_known, "x1")
        if x1.ndim != len(event) + 1:
            raise ValueError(f"x1 must be a batch (B, *event) with the event shape {event}; got {tuple(x1.shape)}")
        check_samples(x1, self.field, "x1")
        self._event_shape_known = event
        args = batch_of_context(context, x1.shape[:1], x1.dtype)[1]
        x0 = self._noise(x1, x0, generator)
        pairs: Any = self.coupling.pairs(x0, x1, args[0] if args else None, generator)
        check_pairs(self.coupling, pairs, x0, x1)
        x0 = x0[pairs]
        t = torch.rand(len(x1), dtype=x1.dtype, device=x1.device, generator=generator) * self.trained_path.end
        x, u = self._point(t, x0, x1, generator)
        return PathSample(t, x, u, tuple(self._with_dropout(c, generator) for c in args))

    def _noise(self, x1: Tensor, x0: Tensor | None, generator: torch.Generator | None) -> Tensor:
        if x0 is None:
            if self.base is None:
                return torch.randn(x1.shape, dtype=x1.dtype, device=x1.device, generator=generator)
            with torch.no_grad():
                return base_samples(self.base, x1.shape[1:], len(x1), (), x1, generator).to(x1)
        if isinstance(x0, Tensor) and not x0.is_floating_point():  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"x0 must be noise like x1; got {x0.dtype}: labels are given by name, as context=")
        check_samples(x0, None, "x0")
        if x0.shape[1:] != x1.shape[1:] or x0.dtype != x1.dtype:
            raise ValueError(
                f"x0 must be like x1, {tuple(x1.shape)} and {x1.dtype}; got {tuple(x0.shape)} and {x0.dtype}"
            )
        return x0

    def _point(self, t: Tensor, x0: Tensor, x1: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """The state at t (B,) and its velocity, (B, *event)."""
        if self.bridge:
            t.clamp_(1e-5, 1.0 - 1e-5)  # the velocity is infinite at both ends
        alpha, sigma, alpha_dot, sigma_dot = coefficients(self.trained_path, t, x1)
        x, u = alpha * x1 + sigma * x0, alpha_dot * x1 + sigma_dot * x0
        if self.sigma == 0.0:
            return x, u
        noise = self.sigma * torch.randn(x1.shape, dtype=x1.dtype, device=x1.device, generator=generator)
        if not self.bridge:
            return x + noise, u
        width = torch.sqrt(alpha * sigma)  # t and 1 - t: the Brownian bridge's deviation
        return x + width * noise, u + (1.0 - 2.0 * alpha) / (2.0 * width) * noise

    def _with_dropout(self, context: Tensor, generator: torch.Generator | None) -> Tensor:
        if self.context_dropout == 0.0 or not self.training:
            return context
        drawn = torch.rand(len(context), device=context.device, generator=generator)
        dropped = (drawn < self.context_dropout).view(-1, *(1 for _ in context.shape[1:]))
        return torch.where(dropped, null_like(self.null_context, context), context)

    def with_path(self, path: PathName | AffinePath) -> FlowMatching:
        """The same trained field, sampled along another path; `loss` stays that of the training's path."""
        if self.bridge:
            raise ValueError("with_path needs an affine path; coupling='bridge' has noise of its own")
        other = copy.copy(self)
        other.path = affine_path(path)
        other._kept = None
        return other

    def _checked_field(self, args: tuple[Tensor, ...]) -> Field:
        """The field, which can be called with these arguments."""
        if self._check.field is not self.field:
            self._check = FieldCheck(self.field)
        self._check.arguments(args)
        return self.field

    def velocity(self, t: Tensor | float, x: Tensor, context: Tensor | None = None, guidance: float = 1.0) -> Tensor:
        """The velocity that samples follow at t, () or (B,), and x (B, *event). context: as in `sample`."""
        batch, args = batch_of_context(context, x.shape[:1], x.dtype)
        f, args = self._velocity(args, number("guidance", guidance))
        return f(torch.as_tensor(t, device=x.device), x.expand(*batch, *x.shape[1:]), *args)

    def _velocity(self, args: tuple[Tensor, ...], guidance: float) -> tuple[Field, tuple[Tensor, ...]]:
        """The velocity as a function of (t, x, *args), the same object for the same options, and args."""
        field = self._checked_field(args)
        if guidance != 1.0 and not args:
            raise ValueError(f"guidance={guidance} needs a context")
        key = (field, self.path, self.trained_path, guidance)
        if self._kept is None or self._kept[0] != key:
            velocity: Field = field if guidance == 1.0 else GuidedVelocity(field, guidance)
            if self.path is not self.trained_path:
                velocity = VelocityOnPath(velocity, self.trained_path, self.path)
            self._kept = key, velocity
        return self._kept[1], args if guidance == 1.0 else (*args, null_like(self.null_context, args[0]))

    def sample(
        self,
        sample_shape: Shape = (),
        context: Tensor | None = None,
        *,
        method: Any = "tsit5",
        steps: int | None = None,
        grid: Times | None = None,
        guidance: float = 1.0,
        x0: Tensor | None = None,
        generator: torch.Generator | None = None,
        **solve_options: Any,
    ) -> Tensor:
        """Samples (*sample_shape, *event), without gradients.

        context: it broadcasts with sample_shape. method: of `odenet.solve`, or a sampler of flow and diffusion models:
        "dpmpp_2m", "dpmpp_3m", "unipc_2", "unipc_3". steps: their number, evenly spaced. grid: the times of the steps,
        from 0 to 1 (see `flow_grid`); neither: the method chooses its steps. guidance: of the context; above 1 it is
        strengthened. x0: the noise to begin with (B, *event), in the place of sample_shape. generator: of the noise.
        solve_options: rtol and so on.
        """
        with torch.no_grad():
            return self.rsample(
                sample_shape,
                context,
                method=method,
                steps=steps,
                grid=grid,
                guidance=guidance,
                x0=x0,
                generator=generator,
                **solve_options,
            )

    def rsample(
        self,
        sample_shape: Shape = (),
        context: Tensor | None = None,
        *,
        method: Any = "tsit5",
        steps: int | None = None,
        grid: Times | None = None,
        guidance: float = 1.0,
        x0: Tensor | None = None,
        generator: torch.Generator | None = None,
        **solve_options: Any,
    ) -> Tensor:
        """`sample` with gradients, to x0, the field, the context and the grid; gradient= chooses how."""
        event = self.known_event_shape if x0 is None else event_shape_of(x0, self._event_shape_known, "x0")
        wanted = sample_size(sample_shape) if x0 is None else x0.shape[: x0.ndim - len(event)]
        if x0 is not None and sample_shape not in ((), torch.Size()):
            raise ValueError(f"sample_shape={sample_shape} and x0 exclude each other: x0 has a row for each sample")
        like = parameter_like(self.field) if x0 is None else x0
        batch, args = batch_of_context(context, wanted, None if like is None else like.dtype)
        if x0 is None:
            x0 = base_samples(self.base, event, batch.numel(), (), like, generator)
        else:
            check_samples(x0, self.field, "x0")
            x0 = x0.expand(*batch, *event).reshape(-1, *event)
        f, args = self._velocity(args, number("guidance", guidance))
        options = sampler_options(self.path, self.trained_path, method, steps, grid, cast(SolveOptions, solve_options))
        ts = layer_times((0.0, self.path.end), x0.dtype, x0.device)
        sol = Solver(f, **options)(x0, ts, args)
        self.stats = sol.stats if torch.compiler.is_compiling() else sol.stats.outliving_vmap()
        return sol.y1.view(*batch, *event)

    def cnf(
        self,
        trace: TraceName = "exact",
        samples: int = 1,
        regularisers: Sequence[str] | Mapping[str, float] = (),
        **solve_options: Unpack[SolveOptions],
    ) -> CNF:
        """The flow as a `CNF` on the same field: its density, exact up to the solver."""
        if self.path is not self.trained_path:
            raise ValueError("a density needs no other path than that of the training: call it before with_path")
        key = (self.field, self.base, trace, samples, str(regularisers), self._event_shape_known, str(solve_options))
        if self._kept_cnf is None or self._kept_cnf[0] != key:  # what is kept need not be compiled again
            shape, ts = self._event_shape_known, (0.0, self.path.end)
            options: Any = {"ts": ts, "event_shape": shape, **solve_options}
            self._kept_cnf = key, CNF(self.field, self.base, trace, samples, regularisers, **options)
        return self._kept_cnf[1]

    def log_prob(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        trace: TraceName = "exact",
        samples: int = 1,
        generator: torch.Generator | None = None,
        **solve_options: Unpack[SolveOptions],
    ) -> Tensor:
        """log p(x | context) in nats of the flow, for x (..., *event): (...). See `CNF`."""
        flow = self.cnf(trace, samples, **solve_options)
        log_prob = flow.log_prob(x, context, generator=generator)
        self.stats = cast("Stats | None", flow.stats)
        return log_prob

    def extra_repr(self) -> str:
        return f"path={self.path!r}, coupling={self.coupling!r}" + (f", sigma={self.sigma}" if self.sigma else "")
