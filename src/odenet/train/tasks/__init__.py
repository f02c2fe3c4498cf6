"""The table of tasks: what follows `odenet train`."""

from __future__ import annotations

from pkgutil import resolve_name

from ..task import Task
from ..user_error import UserError

TASKS = {
    "images": "odenet.train.tasks.images:Images",
    "flow": "odenet.train.tasks.flow:Flow",
    "series": "odenet.train.tasks.series_task:SeriesTask",
}


def task_class(name: str) -> type[Task]:
    """The class of a task by its name."""
    if name not in TASKS:
        raise UserError(f"task {name!r} is unknown. Known: {', '.join(TASKS)}")
    return resolve_name(TASKS[name])
