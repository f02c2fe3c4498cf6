"""Finds the form in which a network takes its time, by trying.

A form is right if the network, called with a few rows and a time for each, gives row by row what it gives for that row
alone with its own time. A time that broadcasts along the wrong axis fails, also where the result has the right shape.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Literal, final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..core.leaves import real_dtype
from ..core.pytrees import flatten, tree_map
from ..core.random_state import Generators
from ..core.reachable import Reachable, find_reachable
from .call_order import CallOrder
from .time_forms import ONE_TENSOR, TWO_TENSORS, NetworkCall, context_rows, has_rows

Network = Callable[..., Any]
Verdict = Literal["right", "blind", "wrong"]
"""Of a form: right; right, but another time changes nothing that could be compared; wrong."""

_ROUNDING = 20.0  # roundings by which a row of a batch may differ from the row alone
_FRACTION = 0.05  # of what another time changes, by which it may differ besides: a wrong time changes far more
_VISIBLE = 100.0  # roundings that another time has to change for a comparison to tell anything
_TIMES = (0.2, 0.8, 0.45, 0.6, 0.3, 0.7, 0.1)  # inside, as many fields have no value at 0 or 1


@final
@dataclass(frozen=True)
class Trial:
    """Samples to try: t and other times (N,), x (N, ...), and context[i] of row i, context[-1] of all rows."""

    t: Tensor
    other_t: Tensor
    x: Tensor
    context: Sequence[tuple[Any, ...]]

    def rescaled(self) -> Trial:
        """With x of size 1 at most, in float32 at least: beside larger numbers time may not show."""

        def promote(x: Any) -> Any:
            short = isinstance(x, Tensor) and x.is_floating_point() and x.itemsize < 4
            return x.float() if short else x

        x = promote(self.x)
        x = x / x.abs().amax().clamp(min=1)
        return Trial(promote(self.t), promote(self.other_t), x, tree_map(promote, self.context))


def detect(
    network: Network,
    order: CallOrder,
    network_time: Callable[[Tensor, Tensor], Tensor],
    t: Tensor,
    x: Tensor,
    context: tuple[Any, ...],
) -> NetworkCall:
    """The call whose time has the right form, found with t () or (B,) and x (B, ...) of a first call.

    network_time: time of the solve and x -> time of the network. Raises ValueError if no form is right.
    """
    reachable = find_reachable(network)
    failures: list[str] = []
    error: Exception | None = None
    with _undisturbed(reachable, x.device):
        clearer = _randomised(network, reachable, x.device) or network
        for shared in _shared_or_not(context, len(x)):
            trial = _trial(network_time, t.detach(), x.detach(), context, shared)
            for call in _calls(order, x, shared):
                try:
                    verdict, why = _verdict(call, network, trial)
                    certain = verdict == "right" and not _some_are_zero(reachable)
                    if verdict != "wrong" and not certain:
                        verdict, why = _verdict_or((verdict, why), call, clearer, trial.rescaled())
                    if verdict == "blind" and not _uses_time(call, network, trial):
                        verdict = "right"
                    if verdict == "right":
                        return _mapped_or_not(call, network, trial)
                except Exception as caught:  # the network may raise anything for a form that it does not take
                    why = f"{type(caught).__name__}: {' '.join(str(caught).split())[:160]}"
                    error = error or caught
                failures.append(f'time="{call.form}": {why}')
    shape = tuple(x.shape)
    raise ValueError(
        f'adapt calls the network as "{order}" with x of shape {shape}, its first axis the batch, and no form of the '
        f"time gives for each row what the network gives for that row alone. Tried: {'; '.join(failures)}. If the "
        'order is wrong, give order="t, x" or the like; if you know the form, time="(B,)" or the like; otherwise give '
        "a function f(t, x) that calls the network"
    ) from error


def _shared_or_not(context: tuple[Any, ...], batch: int) -> list[bool]:
    """Whether the context is shared: what to try, the likely first."""
    return [False, True] if any(has_rows(leaf, batch, False) for leaf in flatten(context)[0]) else [True]


def _calls(order: CallOrder, x: Tensor, shared: bool) -> list[NetworkCall]:
    left_out = {"(B, 1, ...)"} if x.ndim <= 2 else set[str]()  # the same as another form
    if x.ndim <= 2:
        left_out |= {"channel"} if x.ndim == 2 else {"channel", "cat"}
    forms = TWO_TENSORS if order.has("t") else ONE_TENSOR
    return [NetworkCall(order, form, shared) for form in forms if form not in left_out]


def _trial(network_time: Any, t: Tensor, x: Tensor, context: tuple[Any, ...], shared: bool) -> Trial:
    batch = len(x)
    sizes = [len(c) for c in flatten(context)[0] if isinstance(c, Tensor) and c.ndim and not has_rows(c, batch, shared)]
    count = next((n for n in (3, 4, 5, 6) if n not in sizes), 7)  # a shared context must not look like rows
    index = torch.arange(count, device=x.device) % batch
    rows = x[index]
    if any(torch.equal(a, b) for a, b in combinations(rows, 2)):
        noise = torch.randn(rows.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        largest = rows.abs().amax()
        rows = rows + noise.to(rows) * torch.where(largest > 0, 0.3 * largest, 1.0)
    largest_t = t.flatten()[t.abs().argmax()]
    inside = bool((t >= 0).all()) and bool((t <= 1).all())
    fractions = torch.tensor(_TIMES[:count], dtype=torch.float64).to(x.device, real_dtype(x.dtype))
    times = network_time(fractions if inside else fractions * largest_t.to(fractions), x)
    contexts = [context_rows(context, i, batch, shared) for i in [*index.split(1), index]]
    return Trial(times, times.roll(1), rows, contexts)


def _verdict(call: NetworkCall, network: Network, trial: Trial) -> tuple[Verdict, str]:
    """Raises what the network raises, and ValueError for a result of another shape or that is not finite."""
    alone = _alone(call, network, trial, trial.t)
    if call.form == "()":
        first = trial.t[:1].expand_as(trial.t)
        together, expected = _together(call, network, trial, trial.t[0]), _alone(call, network, trial, first)
    else:
        together, expected = _together(call, network, trial, trial.t), alone
    signal = float((alone - _alone(call, network, trial, trial.other_t)).abs().max())
    if call.form == "none":
        signal = float((alone - alone.roll(1, 0)).abs().max())
    rounding = max(torch.finfo(x.dtype).eps for x in (trial.x, together)) * float(alone.abs().max())
    difference = float((together - expected).abs().max())
    if not difference <= _FRACTION * signal + _ROUNDING * rounding:
        return "wrong", f"rows of a batch differ by {difference:.2g} from each row alone (another time: {signal:.2g})"
    if signal <= _VISIBLE * rounding and call.form != "none":
        return "blind", "another time does not change the result, so a wrong form would not show"
    return "right", ""


def _verdict_or(known: tuple[Verdict, str], call: NetworkCall, clearer: Network, trial: Trial) -> tuple[Verdict, str]:
    """Of another trial; `known` where the network does not take that, as where its parameters cannot be replaced."""
    try:
        return _verdict(call, clearer, trial)
    except Exception:  # of the network
        return known


def _mapped_or_not(call: NetworkCall, network: Network, trial: Trial) -> NetworkCall:
    """The call, with the reason if it cannot be mapped over samples."""
    if call.form == "()":
        try:
            _together(call, network, trial, trial.t)
        except Exception as error:  # vmap refuses branches on values, among others
            return replace(call, unmapped=f"{type(error).__name__}: {' '.join(str(error).split())[:160]}")
    return call


def _together(call: NetworkCall, network: Network, trial: Trial, t: Tensor) -> Tensor:
    return _checked(call(network, t.clone(), trial.x.clone(), trial.context[-1]), trial.x)


def _alone(call: NetworkCall, network: Network, trial: Trial, t: Tensor) -> Tensor:
    """Each row as a batch of its own."""
    t = t.clone()  # the network may change it in place
    rows = zip(t if call.form == "()" else t.split(1), trial.x.split(1), trial.context, strict=False)
    return torch.cat([_checked(call(network, t, x.clone(), context), x) for t, x, context in rows])


def _checked(out: Tensor, x: Tensor) -> Tensor:
    if out.shape != x.shape:
        raise ValueError(f"the network returned shape {tuple(out.shape)} for x of shape {tuple(x.shape)}")
    if not bool(torch.isfinite(out).all()):
        raise ValueError("the network returned values that are not finite")
    return out.detach()


@final
class _TimeUse(TorchFunctionMode):
    """Notes whether the time, or a view of it, is an operand."""

    used = False

    def __init__(self, t: Tensor) -> None:
        super().__init__()
        self.address = t.untyped_storage().data_ptr()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") != "__get__":  # its shape or dtype may be asked for
            tensors = [x for x in flatten((args, kwargs))[0] if isinstance(x, Tensor) and x.layout is torch.strided]
            self.used = self.used or any(x.untyped_storage().data_ptr() == self.address for x in tensors)
        return func(*args, **(kwargs or {}))


def _uses_time(call: NetworkCall, network: Network, trial: Trial) -> bool:
    """True when the network touches the time, or autograd sees a path from it to the result, as through TorchScript."""
    t, x = trial.t.clone().requires_grad_(), trial.x.clone().requires_grad_()
    use = _TimeUse(t)

    def watched(*args: Any, **keywords: Any) -> Any:
        with use:
            return network(*args, **keywords)

    out = call(watched, t[0] if call.form == "()" else t, x, trial.context[-1])
    if use.used or not out.requires_grad:
        return use.used
    (slope,) = torch.autograd.grad(out.abs().sum(), t, allow_unused=True)
    return slope is not None  # pyright: ignore[reportUnnecessaryComparison]  # by allow_unused


def _some_are_zero(reachable: Reachable) -> bool:
    """Whether a parameter is zero, as a last layer often is at first: what is behind it does not show."""
    return any(not p.any() for module in reachable.modules for p in module.parameters())


@final
class _Holder(nn.Module):
    """A network with the modules that it reaches, so that their parameters can be replaced for a call."""

    def __init__(self, network: Network, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(modules)
        self.call = (network,)  # in a tuple: a module would be one more part

    def forward(self, *args: Any, **keywords: Any) -> Any:
        return self.call[0](*args, **keywords)


def _randomised(network: Network, reachable: Reachable, device: torch.device) -> Network | None:
    """The network with noise on its parameters, in float32 at least; None if it has none. It stays as it is."""
    holder = _Holder(network, reachable.modules)
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, Tensor] = {}

    def call(*args: Any, **keywords: Any) -> Any:
        if not tensors:
            for name, x in [*holder.named_parameters(), *holder.named_buffers()]:
                if x.is_floating_point():
                    tensors[name] = x.detach().float() if x.itemsize < 4 else x.detach()
            for name, p in holder.named_parameters():
                if p.is_floating_point():
                    noise = torch.randn(p.shape, generator=generator).to(tensors[name])
                    tensors[name] = tensors[name] + 0.3 * noise / max(1, p[0].numel() if p.ndim > 1 else 9) ** 0.5
        with torch.autocast(device.type, enabled=False):
            return torch.func.functional_call(holder, tensors, args, keywords)

    return call if any(True for _ in holder.parameters()) else None


@contextmanager
def _undisturbed(reachable: Reachable, device: torch.device) -> Generator[None]:
    """In eval mode; training flags, buffers and random states are restored. With autograd, which some networks use."""
    modules = {m: m.training for root in reachable.modules for m in root.modules()}
    buffers = [(m, name, x, x.detach().clone()) for m in modules for name, x in m.named_buffers(recurse=False)]
    generators = Generators(device, reachable.generators)
    states = generators.get_states()
    with ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        if "torch._dynamo" in sys.modules:  # a network compiled by its owner is not compiled for these shapes
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            for m in modules:
                m.training = False
            yield
        finally:
            for m, training in modules.items():
                m.training = training
            for m, name, x, before in buffers:
                if not torch.equal(x, before):
                    x.detach().copy_(before)
                setattr(m, name, x)
            generators.set_states(states)
