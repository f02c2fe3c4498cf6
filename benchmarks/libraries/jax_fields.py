"""The fields in JAX: f(t, y, w), where w has the weights by their PyTorch names, and args as "args.0", ..."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax  # pyright: ignore[reportMissingImports]  (the extra `bench`)
import jax.numpy as jnp  # pyright: ignore[reportMissingImports]
from torch import nn

from .problems import Problem

JaxField = Callable[[Any, Any, Any], Any]


def make(problem: Problem) -> JaxField:
    if problem.field.kind == "conv":
        return _conv(problem)
    return {"mlp": _mlp, "cnf": _flow, "lotka": _lotka, "spiral": _spiral}[problem.field.kind]


def _linear(name: str, x: Any, w: Any) -> Any:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def _mlp(t: Any, y: Any, w: Any) -> Any:
    return jnp.tanh(_linear("net.2", jax.nn.softplus(_linear("net.0", y, w)), w))


def _flow(t: Any, y: Any, w: Any) -> Any:
    time = jnp.broadcast_to(jnp.asarray(t, y.dtype), (len(y), 1))
    a = jnp.tanh(_linear("one", jnp.concatenate([y[:, :2], time], 1), w))
    b = jnp.tanh(_linear("two", a, w))
    tangents = (1 - a * a)[:, None] * w["one.weight"][:, :2].T
    tangents = (1 - b * b)[:, None] * (tangents @ w["two.weight"].T)
    trace = (tangents * w["three.weight"]).sum((1, 2))
    return jnp.concatenate([_linear("three", b, w), -trace[:, None]], 1)


def _lotka(t: Any, y: Any, w: Any) -> Any:
    rates = w["args.0"]
    prey, predators = y[..., 0], y[..., 1]
    meetings = prey * predators
    return jnp.stack(
        [rates[..., 0] * prey - rates[..., 1] * meetings, rates[..., 2] * meetings - rates[..., 3] * predators], -1
    )


def _spiral(t: Any, y: Any, w: Any) -> Any:
    cube = y**3
    return cube @ w["A"] + 0.1 * _linear("net.2", jnp.tanh(_linear("net.0", cube, w)), w)


def _conv(problem: Problem) -> JaxField:
    groups = {name: module.num_groups for name, module in problem.f.named_modules() if isinstance(module, nn.GroupNorm)}

    def norm(name: str, y: Any, w: Any) -> Any:
        parts = y.reshape(y.shape[0], groups[name], -1)
        mean, variance = parts.mean(-1, keepdims=True), parts.var(-1, keepdims=True)
        scaled = ((parts - mean) * jax.lax.rsqrt(variance + 1e-5)).reshape(y.shape)
        return scaled * w[f"{name}.weight"][:, None, None] + w[f"{name}.bias"][:, None, None]

    def convolve(y: Any, kernel: Any) -> Any:
        return jax.lax.conv_general_dilated(y, kernel, (1, 1), "SAME", dimension_numbers=("NCHW", "OIHW", "NCHW"))

    def convolution(name: str, t: Any, y: Any, w: Any) -> Any:
        plane = convolve(jnp.ones((1, 1, *y.shape[2:]), y.dtype), w[f"{name}.time_weight"])
        bias = w[f"{name}.conv.bias"][:, None, None]
        return convolve(y, w[f"{name}.conv.weight"]) + bias + t.astype(y.dtype) * plane

    def f(t: Any, y: Any, w: Any) -> Any:
        t = jnp.asarray(t)
        y = convolution("conv1", t, jax.nn.relu(norm("norm1", y, w)), w)
        y = convolution("conv2", t, jax.nn.relu(norm("norm2", y, w)), w)
        return norm("norm3", y, w)

    return f
