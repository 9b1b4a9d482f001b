"""The table of tasks, and that of all their figures. A new task is one file and one line here."""

from __future__ import annotations

from compress.errors import InputError, nearest
from compress.measures import binary, classification, embedding, multilabel, regression, segmentation, tokens
from compress.measures.figure import Figure
from compress.measures.task import Task

OTHER = Task(
    "other", "none of these: only the user's own metric, and how far the outputs moved", "any outputs, any targets"
)
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        classification.TASK,
        binary.TASK,
        multilabel.TASK,
        segmentation.TASK,
        tokens.TASK,
        regression.TASK,
        embedding.TASK,
        OTHER,
    )
}
NAMES = ("auto", *TASKS)
# "task: figure" → the figure, with its function, one line of help and what it needs.
MEASURES: dict[str, Figure] = {f"{task.name}: {item.name}": item for task in TASKS.values() for item in task.figures}


def check_task(name: str) -> None:
    """Refuse an unknown task.

    Raises:
        InputError: gives the nearest name.
    """
    if name not in NAMES:
        raise InputError(f"unknown task {name!r}; {nearest(name, NAMES)}")
