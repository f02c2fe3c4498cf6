"""The problems' fields in JAX: f(t, y, w), w with the weights by their PyTorch names, and args as "args.0", ..."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..fields import Problem


def field(problem: Problem) -> Any:
    return {"mlp": _mlp, "conv": _conv, "cnf": _flow, "lotka": _lotka, "spiral": _spiral}[problem.field.kind](problem)


def _mlp(problem: Problem) -> Any:
    import jax  # pyright: ignore[reportMissingImports]  (the extra `bench`)

    def f(t: Any, y: Any, w: Any) -> Any:
        inner = jax.nn.softplus(y @ w["net.0.weight"].T + w["net.0.bias"])
        return jax.numpy.tanh(inner @ w["net.2.weight"].T + w["net.2.bias"])

    return f


def _conv(problem: Problem) -> Any:
    import jax  # pyright: ignore[reportMissingImports]

    groups = {name: module.num_groups for name, module in problem.f.named_modules() if isinstance(module, nn.GroupNorm)}

    def norm(name: str, y: Any, w: Any) -> Any:
        shape = y.shape
        parts = y.reshape(shape[0], groups[name], -1)
        mean, variance = parts.mean(-1, keepdims=True), parts.var(-1, keepdims=True)
        parts = ((parts - mean) * jax.lax.rsqrt(variance + 1e-5)).reshape(shape)
        return parts * w[f"{name}.weight"][:, None, None] + w[f"{name}.bias"][:, None, None]

    def convolve(y: Any, kernel: Any) -> Any:
        return jax.lax.conv_general_dilated(y, kernel, (1, 1), "SAME", dimension_numbers=("NCHW", "OIHW", "NCHW"))

    def convolution(name: str, t: Any, y: Any, w: Any) -> Any:
        plane = convolve(jax.numpy.ones((1, 1, *y.shape[2:]), y.dtype), w[f"{name}.time_weight"])
        bias = w[f"{name}.conv.bias"][:, None, None]
        return convolve(y, w[f"{name}.conv.weight"]) + bias + t.astype(y.dtype) * plane

    def f(t: Any, y: Any, w: Any) -> Any:
        t = jax.numpy.asarray(t)
        y = convolution("conv1", t, jax.nn.relu(norm("norm1", y, w)), w)
        y = convolution("conv2", t, jax.nn.relu(norm("norm2", y, w)), w)
        return norm("norm3", y, w)

    return f


def _flow(problem: Problem) -> Any:
    import jax  # pyright: ignore[reportMissingImports]

    np = jax.numpy

    def f(t: Any, y: Any, w: Any) -> Any:
        time = np.broadcast_to(np.asarray(t, y.dtype), (len(y), 1))
        a = np.tanh(np.concatenate([y[:, :2], time], 1) @ w["one.weight"].T + w["one.bias"])
        b = np.tanh(a @ w["two.weight"].T + w["two.bias"])
        tangents = (1 - a * a)[:, None] * w["one.weight"][:, :2].T
        tangents = (1 - b * b)[:, None] * (tangents @ w["two.weight"].T)
        trace = (tangents * w["three.weight"]).sum((1, 2))
        return np.concatenate([b @ w["three.weight"].T + w["three.bias"], -trace[:, None]], 1)

    return f


def _lotka(problem: Problem) -> Any:
    import jax  # pyright: ignore[reportMissingImports]

    def f(t: Any, y: Any, w: Any) -> Any:
        rates = w["args.0"]
        prey, predators = y[..., 0], y[..., 1]
        meetings = prey * predators
        return jax.numpy.stack(
            [rates[..., 0] * prey - rates[..., 1] * meetings, rates[..., 2] * meetings - rates[..., 3] * predators], -1
        )

    return f


def _spiral(problem: Problem) -> Any:
    import jax  # pyright: ignore[reportMissingImports]

    def f(t: Any, y: Any, w: Any) -> Any:
        cube = y**3
        inner = jax.numpy.tanh(cube @ w["net.0.weight"].T + w["net.0.bias"])
        return cube @ w["A"] + 0.1 * (inner @ w["net.2.weight"].T + w["net.2.bias"])

    return f
