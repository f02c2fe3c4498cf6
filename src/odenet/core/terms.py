"""Right-hand sides that are sums of parts, for methods that evaluate the parts separately."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import torch

from .pytrees import tree_map
from .serialization import PortableSettings, short_repr
from .validate import function


class Terms(PortableSettings):
    """Base class of dy/dt = sum of parts. `parts` names the parts, which are methods of (t, y, *args).

    Calling the object returns the sum, which every method can solve. Each part returns y's structure and shapes, with
    zeros for components that it does not change. `Method.parts` names the parts that a splitting method evaluates.
    """

    parts: tuple[str, ...]

    def __call__(self, t: Any, y: Any, *args: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} defines __call__(t, y, *args) -> dy/dt, the sum of its parts")


@final
class Partitioned(Terms):
    """Position and velocity: y is a pair (q, p), with dq/dt = velocity(t, p, *args) and dp/dt = force(t, q, *args).

    q, p: tensors or pytrees of tensors. velocity returns the structure and shapes of q, force those of p. Parts:
    `drift` (dq/dt, 0) and `kick` (0, dp/dt).
    """

    parts = ("drift", "kick")

    def __init__(self, velocity: Callable[..., Any], force: Callable[..., Any]) -> None:
        self.velocity = function("velocity", velocity, "velocity(t, p, *args)")
        self.force = function("force", force, "force(t, q, *args)")

    def __repr__(self) -> str:
        return f"Partitioned({short_repr(self.velocity)}, {short_repr(self.force)})"

    def __call__(self, t: Any, y: Any, *args: Any) -> Any:
        q, p = y
        return self.velocity(t, p, *args), self.force(t, q, *args)

    def drift(self, t: Any, y: Any, *args: Any) -> Any:
        _, p = y
        return self.velocity(t, p, *args), tree_map(torch.zeros_like, p)

    def kick(self, t: Any, y: Any, *args: Any) -> Any:
        q, _ = y
        return tree_map(torch.zeros_like, q), self.force(t, q, *args)
