"""The checks, each run in every process of a group at the same time."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel

import odenet
from distributed.models import Net, Turning, alone, batch, gradients, loss, net, same, steps_differ
from gradient_settings import GRADIENTS
from odenet.core.status import Status
from odenet.errors import WrappedFieldError

CHECKS: dict[str, Callable[[], None]] = {}
CPU = torch.device("cpu")


def mine(parts: list[Tensor]) -> Tensor:
    return parts[dist.get_rank()]


def ddp(model: Net, **options: Any) -> nn.Module:
    return DistributedDataParallel(model, **options)


def sharded(model: Net, layer: bool = False) -> nn.Module:
    """FSDP2: the whole model as a unit, or the layer as one inside it, whose weights are dropped after its forward."""
    if layer:
        fully_shard(model.ode)
    return fully_shard(model)


def wrapped(model: Net, layer: bool = False) -> nn.Module:
    """FSDP1, in the same two ways."""
    if layer:
        model.ode = FullyShardedDataParallel(model.ode, device_id=CPU, use_orig_params=True)  # type: ignore[assignment]
    return FullyShardedDataParallel(model, device_id=CPU, use_orig_params=True)


WRAPPERS: dict[str, Callable[[Net], nn.Module]] = {
    "ddp": ddp,
    "fsdp2": sharded,
    "fsdp2 layer": partial(sharded, layer=True),
    "fsdp1": wrapped,
    "fsdp1 layer": partial(wrapped, layer=True),
}


def whole(module: nn.Module, model: Net) -> dict[str, Tensor]:
    if isinstance(module, FullyShardedDataParallel):
        with FullyShardedDataParallel.summon_full_params(module, with_grads=True):
            return {k: v.clone() for k, v in gradients(module).items()}
    return gradients(model)


def about_views(wrap: str) -> None:
    """TorchDynamo looks at the gradient of each tensor, and warns; FSDP1's are views of one."""
    if wrap.startswith("fsdp1"):
        warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf", UserWarning)


def parity(wrap: str, **options: Any) -> None:
    """Gradients as of one process, twice in a row, though one process takes many times the steps of the other."""
    about_views(wrap)
    model, parts = net(**options), batch()
    expected = alone(model, parts)
    module = WRAPPERS[wrap](model)
    for _ in range(2):
        module.zero_grad(set_to_none=True)
        loss(module(mine(parts))).backward()
        same(whole(module, model), expected)
    steps_differ(model)


for _wrap in WRAPPERS:
    for _name, _gradient in GRADIENTS.items():
        CHECKS[f"{_wrap}: {_name}"] = partial(parity, _wrap, gradient=_gradient)
    CHECKS[f"{_wrap}: solve"] = partial(parity, _wrap, plain=True)
    CHECKS[f"{_wrap}: compiled"] = partial(parity, _wrap, compile=True)


def no_length(wrap: str, gradient: Any) -> None:
    model, parts = net(gradient=gradient), batch()
    reference = net(gradient=gradient)
    for rank, part in enumerate(parts):
        (loss(reference(part, (0.0, 1.0) if rank == 0 else (0.0, 0.0))) / len(parts)).backward()
    expected = gradients(reference)
    module = WRAPPERS[wrap](model)
    for _ in range(2):
        module.zero_grad(set_to_none=True)
        loss(module(mine(parts), (0.0, 1.0) if dist.get_rank() == 0 else (0.0, 0.0))).backward()
        same(whole(module, model), expected)


for _wrap in ("ddp", "fsdp2 layer", "fsdp1 layer"):
    for _name, _gradient in GRADIENTS.items():
        CHECKS[f"{_wrap}: no length {_name}"] = partial(no_length, _wrap, _gradient)


def refused(unit: Callable[[nn.Module], nn.Module], **options: Any) -> None:
    """A field that is a unit itself, one with a unit in it, and a closure over one; with gradients and without."""
    y0 = torch.ones(2, 3, dtype=torch.float64)
    if options.get("compile"):  # it says first that it could not compile such an f
        warnings.filterwarnings("ignore", "compile=True: solving without", UserWarning)
    for deep in (False, True):
        field = Turning().double()
        if deep:
            field.net = unit(field.net)  # type: ignore[assignment]
        else:
            field = unit(field)  # type: ignore[assignment]
        ways = [field, lambda t, y, field=field: field(t, y)]
        for f in ways if isinstance(field, FSDPModule) else [*ways, field.forward]:
            for grad in (True, False):
                with (
                    torch.set_grad_enabled(grad),
                    pytest.raises(WrappedFieldError, match="Wrap the module around the solve"),
                ):
                    odenet.solve(f, y0, (0.0, 1.0), **options)


def batch_norm() -> None:
    """Statistics over all processes are refused while they are taken, and fine once they are kept."""
    field, y0 = Turning().double(), torch.ones(2, 3, dtype=torch.float64)
    field.net = nn.Sequential(nn.SyncBatchNorm(2).double(), field.net)
    for f in (field, lambda t, y: field(t, y)):
        with pytest.raises(WrappedFieldError, match="SyncBatchNorm"):
            odenet.solve(f, y0, (0.0, 1.0))
    assert odenet.solve(field.eval(), y0, (0.0, 1.0)).y1.isfinite().all()


UNITS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "ddp": DistributedDataParallel,
    "fsdp2": fully_shard,
    "fsdp1": partial(FullyShardedDataParallel, device_id=CPU, use_orig_params=True),
}
CHECKS["batch norm refused"] = batch_norm
for _wrap, _unit in UNITS.items():
    CHECKS[f"{_wrap}: field refused"] = partial(refused, _unit)
    CHECKS[f"{_wrap}: compiled field refused"] = partial(refused, _unit, compile=True)


def whole_batch(wrap: str, per_sample: bool, within: float, **options: Any) -> None:
    """One process that has all samples in one solve: each with its own steps, or all with those of the fastest."""
    about_views(wrap)
    model, parts = net(per_sample=per_sample, **options), batch()
    expected = alone(model, [torch.cat(parts)])
    module = WRAPPERS[wrap](model)
    loss(module(mine(parts))).backward()
    same(whole(module, model), expected, within)


TIGHT: dict[str, Any] = {"method": "dopri8", "rtol": 1e-10, "atol": 1e-11}
for _wrap in ("ddp", "fsdp2 layer", "fsdp1"):
    for _name, _gradient in GRADIENTS.items():
        CHECKS[f"{_wrap}: whole batch, per sample {_name}"] = partial(
            whole_batch, _wrap, True, 1e-9, gradient=_gradient
        )
    CHECKS[f"{_wrap}: whole batch, joint"] = partial(whole_batch, _wrap, False, 1e-7, **TIGHT)
    CHECKS[f"{_wrap}: whole batch, compiled"] = partial(whole_batch, _wrap, True, 1e-9, compile=True)


def failing(gradient: Any) -> None:
    """Some samples of one process fail late, all of another at once; the loss leaves them out by their status."""
    warnings.filterwarnings("ignore", "gradient='reversible': the solution is not accurate", UserWarning)
    options: dict[str, Any] = {"per_sample": True, "on_failure": "return", "max_steps": 30}
    model, reference = (net(plain=True, gradient=gradient, **options) for _ in range(2))
    parts = batch()
    parts[0][:, 2] = torch.tensor([1.0, 200.0, 1.0, 200.0], dtype=torch.float64)
    parts[1][:, 2] = torch.inf

    def masked(module: nn.Module, layer: Any, part: Tensor) -> Tensor:
        out = module(part)
        good = torch.as_tensor(layer.status) == Status.SUCCESS
        assert good.tolist() == ([True, False, True, False] if part is parts[0] else [False] * 4)
        return torch.where(good.unsqueeze(1), out - 0.3, 0.0).square().mean()

    for part in parts:
        (masked(reference, reference.ode, part) / len(parts)).backward()
    module = ddp(model)
    masked(module, model.ode, mine(parts)).backward()
    same(gradients(model), gradients(reference))


def accumulated(wrap: str) -> None:
    """Two batches before one exchange, as one process that sums over both."""
    model, first, second = net(), batch(1), batch(2)
    one, two = alone(model, first), alone(model, second)
    module = WRAPPERS[wrap](model)
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(False)
        loss(module(mine(first))).backward()
        module.set_requires_gradient_sync(True)
    else:
        with module.no_sync():  # type: ignore[operator]
            loss(module(mine(first))).backward()
    loss(module(mine(second))).backward()
    same(whole(module, model), {k: one[k] + two[k] for k in one})


class TwoHeads(nn.Module):
    """A model of which every process uses another part, or none of its solve."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.other = net(), net()

    def forward(self, x: Tensor, which: int) -> Tensor:
        return (self.net, self.other)[which](x)


def unused() -> None:
    """find_unused_parameters=True: one process solves with one layer, the next with another."""
    model, parts = TwoHeads(), batch()
    loss(model.net(parts[0])).div(2).backward()
    loss(model.other(parts[1])).div(2).backward()
    expected = gradients(model)
    module = DistributedDataParallel(model, find_unused_parameters=True)
    for _ in range(2):
        module.zero_grad(set_to_none=True)
        loss(module(mine(parts), dist.get_rank())).backward()
        same(gradients(model), expected)


def static(**options: Any) -> None:
    """static_graph=True: the graph around the solve is the same in each step, whatever the steps of the solve."""
    model = net(**options)
    module = ddp(model, static_graph=True, gradient_as_bucket_view=True)
    for seed in range(4):
        parts = batch(seed)
        parts[0][:, 2] += 3.0 * seed
        expected = alone(model, parts)
        module.zero_grad(set_to_none=True)
        loss(module(mine(parts))).backward()
        same(gradients(model), expected)


def trained(wrap: str, **options: Any) -> None:
    """Five steps of Adam: the weights of one process."""
    model, reference = net(**options), net(**options)
    module = WRAPPERS[wrap](model)
    ours, theirs = (torch.optim.Adam(m.parameters(), lr=0.05) for m in (module, reference))
    for seed in range(5):
        parts = batch(seed)
        ours.zero_grad()
        loss(module(mine(parts))).backward()
        ours.step()
        theirs.zero_grad()
        for part in parts:
            (loss(reference(part)) / len(parts)).backward()
        theirs.step()
    if isinstance(module, FullyShardedDataParallel):
        with FullyShardedDataParallel.summon_full_params(module):
            found = weights(module)
    else:
        found = weights(model)
    same(found, weights(reference), 1e-9)


def weights(model: nn.Module) -> dict[str, Tensor]:
    named = {k.replace("_fsdp_wrapped_module.", ""): p.detach() for k, p in model.named_parameters()}
    return {k: p.full_tensor() if hasattr(p, "full_tensor") else p.clone() for k, p in named.items()}


for _name, _gradient in GRADIENTS.items():
    CHECKS[f"ddp: failing samples {_name}"] = partial(failing, _gradient)
for _wrap in WRAPPERS:
    CHECKS[f"{_wrap}: accumulated"] = partial(accumulated, _wrap)
    CHECKS[f"{_wrap}: trained"] = partial(trained, _wrap)
CHECKS["ddp: unused parameters"] = unused
CHECKS["ddp: static graph"] = static
CHECKS["ddp: static graph, backprop"] = partial(static, gradient="backprop")
