"""A flow with its context fixed, as a distribution and as a transform of PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor
from torch.distributions import Distribution, Transform, constraints

if TYPE_CHECKING:
    from .cnf import CNF


@final
class FlowDistribution(Distribution):
    """The distribution of a flow under a context. batch_shape: that of the context, or what `expand` gave it."""

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 # pyright: ignore[reportIncompatibleMethodOverride]  as there

    def __init__(self, flow: CNF, context: Tensor | None, batch_shape: torch.Size) -> None:
        self.flow, self.context = flow, context
        super().__init__(batch_shape, torch.Size(flow.known_event_shape), validate_args=False)

    @property
    def has_rsample(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.flow.has_rsample

    @property
    def support(self) -> Any:
        return constraints.independent(constraints.real, len(self.event_shape))

    def expand(self, batch_shape: Any, _instance: Any = None) -> FlowDistribution:
        context, batch = self.context, torch.Size(batch_shape)
        if context is not None:
            context = context.expand(*batch, *context.shape[len(self.batch_shape) :])
        return FlowDistribution(self.flow, context, batch)

    def log_prob(self, value: Tensor) -> Tensor:
        shape = torch.broadcast_shapes(value.shape[: value.ndim - len(self.event_shape)], self.batch_shape)
        return self.flow.log_prob(value.expand(*shape, *self.event_shape), self.context)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self.flow.sample(torch.Size(sample_shape) + self.batch_shape, self.context)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.flow.rsample(torch.Size(sample_shape) + self.batch_shape, self.context)


@final
class FlowTransform(Transform):
    """The map of a flow from the base to the data under a context; inv is the map back.

    The solve gives log |det| with the map: the last one is kept, with its arguments.
    """

    bijective = True

    def __init__(self, flow: CNF, context: Tensor | None) -> None:
        super().__init__()
        self.flow, self.context = flow, context
        self._last: tuple[Tensor, Tensor, Tensor] | None = None  # base side, data side, log |det|

    @property
    def domain(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        return constraints.independent(constraints.real, len(self.flow.known_event_shape))

    @property
    def codomain(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.domain

    def with_cache(self, cache_size: int = 1) -> FlowTransform:
        return self

    def _call(self, x: Tensor) -> Tensor:
        data, log_det = self.flow.to_data(x, self.context)
        self._last = x, data, log_det
        return data

    def _inverse(self, y: Tensor) -> Tensor:
        base, log_det = self.flow.to_base(y, self.context)
        self._last = base, y, -log_det
        return base

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        if self._last is None or self._last[0] is not x or self._last[1] is not y:
            self._call(x)
        assert self._last is not None
        return self._last[2]
