"""Every gradient, by the name of the setting: what tests of all of them run through."""

from __future__ import annotations

from typing import Any

import odenet

GRADIENTS: dict[str, Any] = {
    "discrete": "discrete",
    "checkpoints": odenet.Discrete(checkpoints=3),
    "backprop": "backprop",
    "reversible": "reversible",
    "adjoint": "adjoint",
    "gauss": "gauss",
    "forward": "forward",
}
