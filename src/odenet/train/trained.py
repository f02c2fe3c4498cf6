"""A run that is read again: its settings and its trained network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from .errors import UserError, first_line
from .task import Task

SETTINGS, WEIGHTS, CHECKPOINTS = "settings.json", "model.safetensors", "checkpoints"
_KEYS = ("task", "settings", "info", "data")


def record(folder: Path) -> dict[str, Any]:
    """What settings.json says of a run."""
    path = folder / SETTINGS
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder} holds no run: there is no {SETTINGS}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({first_line(error)}): bring a copy back") from None
    if not isinstance(found, dict) or any(key not in found for key in _KEYS):
        raise UserError(f"{path} is not of a run: it needs {', '.join(_KEYS)}; bring the run's own back")
    return found


def opened(folder: Path) -> tuple[type[Task[Any]], Any, dict[str, Any], nn.Module]:
    """Of a run: its task, its settings, its info, and the network with the trained weights, in evaluation mode."""
    from .tasks import task_class

    path = folder / WEIGHTS
    found = record(folder)
    if found["info"] is None:
        raise UserError(f"{folder} is a comparison: give one of its nets, such as {folder / 'odenet'}")
    task = task_class(found["task"])
    try:
        settings = task.Settings(**found["settings"])
        net = task.build(settings, found["info"])
    except (TypeError, ValueError, KeyError) as error:
        raise UserError(f"{folder / SETTINGS} does not describe a net ({first_line(error)})") from None
    try:
        net.load_state_dict(_weights(folder))
    except RuntimeError as error:
        raise UserError(f"{path} is of another net ({first_line(error)}): bring the run's own back") from None
    return task, settings, found["info"], net.eval()


def _weights(folder: Path) -> dict[str, Any]:
    """Those at the end of the training, else those of the newest checkpoint."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from .checkpoint import newest

    path = folder / WEIGHTS
    if path.is_file():
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path} is damaged ({first_line(error)}): --resume writes it anew") from None
    found = newest(folder / CHECKPOINTS)
    if found is None:
        raise UserError(f"{folder} has no trained weights yet: go on with --resume")
    return {k.removeprefix("net."): v for k, v in found.state["state_dict"].items() if k.startswith("net.")}


def load(folder: str | Path) -> nn.Module:
    """The trained network of a run, in evaluation mode on the CPU: `odenet.train.load("runs/digits")`.

    Of a training that is not at its end: as of its newest checkpoint. No code in the files is run. Raises UserError.
    """
    return opened(Path(folder))[3]
