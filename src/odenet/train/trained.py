"""A run that is read again: its settings and its trained network."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from .task import Task
from .user_error import UserError, first_line

SETTINGS, WEIGHTS, CHECKPOINTS = "settings.json", "model.safetensors", "checkpoints"


def read_settings(folder: Path) -> dict[str, Any]:
    """What settings.json says of a run: its task, settings, info and the fingerprint of its data."""
    path = folder / SETTINGS
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        kinds = {"task": str, "settings": dict, "info": (dict, type(None)), "data": (str, type(None))}
        if not all(isinstance(found[key], kind) for key, kind in kinds.items()):
            raise ValueError("it is not of a run")
    except FileNotFoundError:
        raise UserError(f"{folder} holds no run: there is no {SETTINGS}, which odenet train writes") from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} cannot be used ({first_line(error)}): bring a copy back") from None
    return found


@dataclass(frozen=True)
class Run:
    """A trained network in evaluation mode, with its task, the settings and the info of its run."""

    task: type[Task]
    settings: Any
    info: dict[str, Any]
    net: nn.Module


def open_run(folder: Path) -> Run:
    """The run in a folder, from settings.json and model.safetensors: nothing in them is executed."""
    from .tasks import task_class

    found = read_settings(folder)
    if found["info"] is None:
        raise UserError(f"{folder} is a comparison: give one of its nets, such as {folder / 'odenet'}")
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"{folder} has no {WEIGHTS}: the training is not at its end, go on with --resume")
    task = task_class(found["task"])
    try:
        settings = task.Settings(**found["settings"])
        net = task.build(settings, found["info"])
        net.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, TypeError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"{folder}: {SETTINGS} and {WEIGHTS} do not give a net ({first_line(error)}): bring the run's own back"
        ) from None
    return Run(task, settings, found["info"], net.eval())


def load(folder: str | Path) -> nn.Module:
    """The trained network of a run, in evaluation mode on the CPU: `odenet.train.load("runs/images")`.

    A flow is in the units of its data: `load("runs/flow").log_prob(x)`, `.sample((n,))`; its `flow` is the `CNF` or
    `FlowMatching` that was trained, on standardised columns. A model of series takes an `odenet.series.Series`, and
    times where it says values: `load("runs/series")(series, ts)` gives mean and std.
    """
    run = open_run(Path(folder))
    return run.task.in_units(run.net, run.info)
