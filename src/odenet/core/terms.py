"""Right-hand sides in parts, for methods that treat the parts differently."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import torch

from .pytrees import tree_map
from .serialization import PortableSettings
from .validate import function


class Terms(PortableSettings):
    """dy/dt as a function of (t, y, *args) that is a sum of parts: methods of (t, y, *args) that `parts` names.

    Called, it gives the sum, with which every method works. Each part gives a tensor for each of y's, zeros where it
    says nothing. A method that treats them apart names the parts that it needs in `Method.parts`.
    """

    parts: tuple[str, ...]

    def __call__(self, t: Any, y: Any, *args: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} defines __call__(t, y, *args) -> dy/dt, the sum of its parts")


@final
class Partitioned(Terms):
    """Position and velocity: y is a pair (q, p), with dq/dt = velocity(t, p, *args) and dp/dt = force(t, q, *args).

    q, p: tensors or pytrees of them. velocity gives the structure and shapes of q, force those of p. Parts: `drift`,
    which moves q, and `kick`, which moves p.
    """

    parts = ("drift", "kick")

    def __init__(self, velocity: Callable[..., Any], force: Callable[..., Any]) -> None:
        self.velocity = function("velocity", velocity, "velocity(t, p, *args)")
        self.force = function("force", force, "force(t, q, *args)")

    def __repr__(self) -> str:
        return f"Partitioned({self.velocity!r}, {self.force!r})"

    def __call__(self, t: Any, y: Any, *args: Any) -> Any:
        q, p = y
        return self.velocity(t, p, *args), self.force(t, q, *args)

    def drift(self, t: Any, y: Any, *args: Any) -> Any:
        _, p = y
        return self.velocity(t, p, *args), tree_map(torch.zeros_like, p)

    def kick(self, t: Any, y: Any, *args: Any) -> Any:
        q, _ = y
        return tree_map(torch.zeros_like, q), self.force(t, q, *args)
