"""The tasks of `homes.HOMES`, opened, and the table of all their figures."""

from __future__ import annotations

import importlib

from compress.errors import InputError, nearest
from compress.measures import other
from compress.measures.figure import Figure
from compress.measures.homes import HOMES
from compress.measures.task import Task

OTHER = other.TASK
TASKS: dict[str, Task] = {name: importlib.import_module(home).TASK for name, home in HOMES.items()}
# "task: figure" → the figure, with its function, one line of help and what it needs.
MEASURES: dict[str, Figure] = {f"{task.name}: {item.name}": item for task in TASKS.values() for item in task.figures}


def check_task(name: str) -> None:
    """Refuse an unknown task.

    Raises:
        InputError: gives the nearest name.
    """
    if name != "auto" and name not in TASKS:
        raise InputError(f"unknown task {name!r}; {nearest(name, ['auto', *TASKS])}")
