"""Fields that are wrong, that go wrong after some evaluations, or that only look so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

import odenet
from odenet.core.pytrees import flatten, unflatten

from .hostile import decay


class OwnError(Exception):
    """The caller's own."""


def _negative(y: Any) -> Any:
    return decay(None, y)  # type: ignore[arg-type]


def _every(change: Callable[[Tensor], Any]) -> Callable[..., Any]:
    def f(t: Tensor, y: Any) -> Any:
        leaves, spec = flatten(y)
        return unflatten([change(x) for x in leaves], spec)

    return f


def _raise(t: Tensor, y: Any) -> Any:
    raise OwnError("own")


def _in_place(t: Tensor, y: Any) -> Any:
    out = _negative(y)
    for x in flatten(y)[0]:
        x.mul_(2.0)
    return out


def _moves_time(t: Tensor, y: Any) -> Any:
    t.add_(1.0)
    return _negative(y)


def _nested(t: Tensor, y: Any) -> Any:
    one = odenet.solve(lambda s, x: 0 * x, torch.ones(1, dtype=torch.float64), [0.0, 1.0]).y1
    return _every(lambda x: -x * one[0].to(x.dtype))(t, y)


def _by_gradient(t: Tensor, y: Any) -> Any:
    """Minus the slope of |y|^2 / 2, by autograd."""
    leaves, spec = flatten(y)
    with torch.enable_grad():
        xs = [x if x.requires_grad else x.detach().requires_grad_() for x in leaves]
        grads = torch.autograd.grad(sum((x * x).sum() for x in xs) / 2, xs, create_graph=torch.is_grad_enabled())
    return unflatten([-g for g in grads], spec)


def _no_grad(t: Tensor, y: Any) -> Any:
    with torch.no_grad():
        return _negative(y)


def _random(t: Tensor, y: Any) -> Any:
    return _every(lambda x: -x + 0 * torch.rand_like(x))(t, y)


def _branches(t: Tensor, y: Any) -> Any:
    return _every(lambda x: -x if bool((x.detach() > 0).any()) else torch.neg(x))(t, y)


class Field(NamedTuple):
    """f, and what a call comes to: "value" (of y' = -y), "own" (its own exception), or an error that names f."""

    f: Callable[..., Any]
    end: str
    names: str = "f"


FIELDS: dict[str, Field] = {
    "raises": Field(_raise, "own"),
    "none": Field(lambda t, y: None, "error"),
    "number": Field(lambda t, y: 1.0, "error"),
    "array": Field(_every(lambda x: -x.detach().numpy()), "error"),
    "text": Field(lambda t, y: "x", "error"),
    "list of it": Field(lambda t, y: [_negative(y)], "error"),
    "pair": Field(lambda t, y: (_negative(y), _negative(y), 1), "error"),
    "iterator": Field(lambda t, y: iter([_negative(y)]), "error"),
    "wide": Field(_every(lambda x: torch.cat([-x, -x], -1)), "error"),
    "thin": Field(_every(lambda x: -x[..., :1]), "error"),
    "extra axis": Field(_every(lambda x: -x[None]), "error"),
    "fewer axes": Field(_every(lambda x: -x.sum(0)), "error"),
    "0-d": Field(_every(lambda x: -x.sum()), "error"),
    "empty": Field(_every(lambda x: -x[:0]), "error"),
    "float32": Field(_every(lambda x: -x.float()), "error"),
    "half": Field(_every(lambda x: -x.half()), "error"),
    "whole": Field(_every(lambda x: -x.long()), "error"),
    "bool": Field(_every(lambda x: x > 0), "error"),
    "complex": Field(_every(lambda x: -x.to(torch.complex128)), "error"),
    "meta": Field(_every(lambda x: (-x).to("meta")), "error"),
    "sparse": Field(_every(lambda x: (-x).to_sparse()), "error"),
    "nan": Field(_every(lambda x: x * torch.nan), "solve error"),
    "inf": Field(_every(lambda x: x.abs() + torch.inf), "solve error"),
    "in place": Field(_in_place, "error or torch"),
    "in place of time": Field(_moves_time, "error"),
    "no arguments": Field(lambda: None, "type"),
    "three arguments": Field(lambda t, y, z: y, "type"),
    "view": Field(_every(lambda x: (-x)[...].view(x.shape)), "value"),
    "strided": Field(_every(lambda x: (-x).mT.contiguous().mT), "value"),
    "nested": Field(_nested, "value"),
    "by gradient": Field(_by_gradient, "value"),
    "no grad": Field(_no_grad, "value without graph"),
    "detached": Field(_every(lambda x: -x.detach()), "value without graph"),
    "random": Field(_random, "value"),
    "branches": Field(_branches, "value"),
    "itself": Field(lambda t, y: y, "growth"),
    "module list": Field(torch.nn.ModuleList(), "own or type"),
    "buffer": Field(_negative, "buffer"),
}


def going_wrong(field: Field, at: int) -> Callable[..., Any]:
    """y' = -y (y' = y for "growth") until the `at`-th evaluation, and from then on the field."""
    count = 0

    def f(t: Tensor, y: Any) -> Any:
        nonlocal count
        count += 1
        return _negative(y) if count < at else field.f(t, y)

    return field.f if at == 1 or field.end in ("growth", "type") else f


def buffered() -> Callable[..., Any]:
    """y' = -y, each time written into the same memory."""
    kept: list[Tensor] = []

    def f(t: Tensor, y: Any) -> Any:
        leaves, spec = flatten(y)
        with torch.no_grad():
            if len(kept) != len(leaves) or any(a.shape != b.shape for a, b in zip(kept, leaves, strict=True)):
                kept[:] = [torch.empty_like(x) for x in leaves]
            for x, out in zip(leaves, kept, strict=True):
                torch.neg(x, out=out)
        return unflatten(list(kept), spec)

    return f
