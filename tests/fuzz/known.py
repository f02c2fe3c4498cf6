"""A drawn `Valid`: the objects of the call, and its answer in float64."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import odenet
from odenet.control import Controller
from odenet.core.pytrees import flatten, unflatten
from odenet.gradients import GRADIENTS
from odenet.methods import METHODS

from . import hostile
from .fields import FIELDS, STRUCTURES, Leaves, as_called
from .strategies import Valid

MIXED = (torch.float64, torch.float32, torch.complex64)
WIDE = {True: torch.complex128, False: torch.float64}


class Built(NamedTuple):
    """The call. times: ts in float64, attached to what of ts asks for a gradient (`times_of`). k: as f uses it."""

    f: Any
    y0: Any
    ts: Any
    args: tuple[Any, ...]
    options: dict[str, Any]
    leaves: Leaves
    k: Tensor
    times: Tensor
    times_of: list[Tensor]


def shapes(case: Valid, count: int) -> list[tuple[int, ...]]:
    same = case.field == "swap" or len(case.shape) > 3
    return [case.shape if same else (*case.shape, *(2,) * (i % 2)) for i in range(count)]


def laid_out(x: Tensor, layout: str) -> Tensor:
    """A tensor of x's shape (and values, unless expanded) in another layout."""
    if layout == "transposed" and x.ndim > 1:
        return x.mT.contiguous().mT
    if layout == "expanded" and x.ndim:
        return x[..., :1].expand(x.shape)
    if layout == "strided":
        return torch.stack([x, x + 1], -1)[..., 0]
    if layout == "offset":
        return torch.cat([x.reshape(-1) + 1, x.reshape(-1)])[x.numel() :].view(x.shape)
    return x


def state(case: Valid) -> Leaves:
    generator = torch.Generator().manual_seed(case.seed)
    count = len(flatten(STRUCTURES[case.structure])[0])
    out = []
    for i, shape in enumerate(shapes(case, count)):
        x = torch.rand(shape, dtype=torch.float64, generator=generator)
        x = 0.1 + 0.8 * x if case.field == "logistic" else 3 * x - 1.5
        dtype = MIXED[i % 3] if case.dtype == "mixed" else getattr(torch, case.dtype)
        if case.dtype == "mixed" and case.field == "logistic":
            dtype = torch.float64
        if dtype.is_complex:
            x = x + 0.5j * torch.rand(shape, dtype=torch.float64, generator=generator)
        x = x.to(dtype)
        if case.grad == "inner":
            x = laid_out(x.requires_grad_() * 1, case.layout)
        else:
            x = laid_out(x, case.layout).requires_grad_(case.grad == "leaf")
        out.append(x)
    return out


def given_times(case: Valid) -> tuple[Any, Tensor, list[Tensor]]:
    """ts as given, as float64, and the tensors of it that ask for a gradient."""
    ts, form = np.array(case.ts, dtype=float) * case.unit, case.ts_form
    if form == "integers" and case.unit >= 1:
        whole = [round(t) for t in ts.tolist()]
        return (torch.tensor(whole) if case.seed % 2 else whole), torch.tensor(whole, dtype=torch.float64), []
    if form in ("float64", "float32"):
        x = torch.tensor(ts, dtype=getattr(torch, form), requires_grad=case.ts_grad)
        return x, x.double(), [x] if case.ts_grad else []
    if form == "mixed":
        one = torch.tensor(ts[1], dtype=torch.float64, requires_grad=case.ts_grad)
        parts = [torch.tensor(t, dtype=torch.float64) for t in ts]
        return (
            [float(ts[0]), one, *ts[2:].tolist()],
            torch.stack([parts[0], one, *parts[2:]]),
            [one] if case.ts_grad else [],
        )
    shown = ts if form == "numpy" else tuple(ts.tolist()) if form == "tuple" else ts.tolist()
    return shown, torch.tensor(ts), []


def controller(case: Valid) -> Controller | None:
    table = hostile.PIDS if case.tol is not None else hostile.STEPS
    return None if case.controller == "none" else table[case.controller](case.unit)


def gradient(case: Valid) -> Any:
    if case.setting in hostile.SETTINGS[case.gradient]:
        return hostile.SETTINGS[case.gradient][case.setting]()
    return GRADIENTS[case.gradient]() if case.setting == "instance" else case.gradient


def tolerance(case: Valid, size: float, leaves: Leaves) -> Any:
    if case.tol_form == "tensor":
        return torch.tensor(size, dtype=torch.float64)
    if case.tol_form == "tree":
        spec = flatten(STRUCTURES[case.structure])[1]
        parts = [torch.full(x.shape[-1:], size) if i % 2 else size for i, x in enumerate(leaves)]
        return unflatten(parts, spec)
    return np.float64(size) if case.tol_form == "numpy" else size


def built(case: Valid) -> Built:
    leaves = state(case)
    rows = case.passing == "rows"
    size = 1 + torch.arange(len(leaves[0]), dtype=torch.float64) / 8 if rows else torch.tensor(1.0, dtype=torch.float64)
    k = (case.k * size).requires_grad_(case.k_grad)
    f, args, k = as_called(FIELDS[case.field], case.unit, case.passing, k)
    ts, times, times_of = given_times(case)
    options: dict[str, Any] = {
        "method": METHODS[case.method] if case.instance else case.method,
        "gradient": gradient(case),
        "per_sample": case.per_sample,
        "dense": case.dense,
        "on_failure": case.on_failure,
        "controller": controller(case),
    }
    if case.compiled:
        options["compile"] = True
    if case.tol is not None:
        options |= {"rtol": tolerance(case, case.tol, leaves), "atol": tolerance(case, case.tol, leaves)}
    elif options["controller"] is None:
        options["step"] = case.step * case.unit
    y0 = unflatten(leaves, flatten(STRUCTURES[case.structure])[1])
    return Built(f, y0, ts, args, options, leaves, k, times, times_of)


def wide(x: Tensor) -> Tensor:
    return x.to(WIDE[x.is_complex()])


def exact(case: Valid, leaves: Leaves, k: Tensor, times: Tensor, start: Tensor) -> Leaves:
    """The solution at times (T,) or (B, T), as (T, ...) or, per sample, (B, T, ...). start: lane, where y0 holds."""
    known, axis = FIELDS[case.field], int(case.per_sample)
    columns = [known.flow([wide(x) for x in leaves], k, start / case.unit, t / case.unit) for t in times.unbind(-1)]
    return [torch.stack([c[i] for c in columns], axis) for i in range(len(leaves))]


def eps(case: Valid, x: Tensor) -> float:
    return torch.finfo(x.dtype).eps


def bound(case: Valid, x: Tensor) -> float:
    """The error that a value of size one may have."""
    rounding = 30 * torch.finfo(x.dtype).eps + (1e-6 if case.ts_form == "float32" else 0.0) + 1e-12
    order = METHODS[case.method].order
    if case.tol is not None:
        # the estimate of fehlberg2, which is torchdiffeq's, lets errors through that are some ten times as large
        return (400 if case.method == "fehlberg2" else 40) * case.tol + rounding
    assert case.step is not None
    factor = {1: 1.5, 2: 3.0}.get(order, 5.0)
    return factor * case.step ** min(order, 4) + rounding


def noted_at(made: Built) -> Tensor:
    """The time of an event that is noted down, 0-d or (B,)."""
    times = made.times.detach()
    return times[..., 0] + 0.6 * (times[..., -1] - times[..., 0])


def event(case: Valid, made: Built, want: Leaves) -> tuple[Any, float | None]:
    """The event of the call, and the time at which it ends the solve: None for never."""
    if case.event in ("noted", "same"):
        when = noted_at(made)
        same = None if case.event == "noted" else lambda t, y, *args: y
        return odenet.Event(lambda t, y, *args: t - when.to(t), terminal=False, reset=same), None
    if case.event == "never":
        return odenet.Event(lambda t, y, *args: t * 0 + 1.0), None
    start, end = float(made.times.detach()[0]), float(made.times.detach()[-1])
    at = start + 0.6 * (end - start)
    if start == end:
        return odenet.Event(lambda t, y, *args: t * 0 + 1.0), None
    if case.event == "several":
        later = start + 0.9 * (end - start)
        return [odenet.Event(lambda t, y, *args: t - later), odenet.Event(lambda t, y, *args: t - at)], at
    if case.event == "state" and case.field == "scale" and case.k and not made.leaves[0].is_complex():
        one = exact(case, made.leaves, made.k, torch.tensor([at], dtype=torch.float64), made.times[0])[0].detach()
        level = float(one.reshape(-1)[0])
        if abs(level) > 0.05:
            return odenet.Event(lambda t, y, *args: flatten(y)[0][0].reshape(-1)[0].double() - level), at
    return odenet.Event(lambda t, y, *args: t - at), at
