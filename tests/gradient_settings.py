"""Every gradient: what tests of all of them run through. A new gradient is tested where these are used.

NAMES: all names. SETTINGS: those, and checkpoints. GRADIENTS: settings by a name. APPROXIMATE: names of those that are
the derivative of the true solution and not of the numerical one.
"""

from __future__ import annotations

from typing import Any

import odenet
from odenet.gradients import GRADIENTS as CLASSES

NAMES = list(CLASSES)
APPROXIMATE = {name for name, gradient in CLASSES.items() if not gradient.exact}
GRADIENTS: dict[str, Any] = {**{name: name for name in NAMES}, "checkpoints": odenet.Discrete(checkpoints=3)}
SETTINGS: list[Any] = [*NAMES, odenet.Discrete(checkpoints=2)]
