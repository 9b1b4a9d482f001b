"""What a task is: how its outputs are read, which figures it has, what one sample of it is called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from compress.measures.figure import Figure


@dataclass(frozen=True)
class Labelled:
    """A batch of class decisions: (N, …) classes, the classes given, and which positions count."""

    predicted: Tensor
    target: Tensor  # 0 where not counted
    counted: Tensor
    classes: int

    @property
    def right(self) -> Tensor:
        return (self.predicted == self.target) & self.counted


@dataclass(frozen=True)
class Seen:
    """One batch of one model, as a task sees it: the first output (classes in dimension 1), its target."""

    scores: Tensor
    target: Any
    reference: Tensor | None = None  # the baseline's first output; None for the baseline itself
    labelled: Labelled | None = None


@dataclass(frozen=True)
class Reading:
    """How the outputs and targets of one data set are read, found on its first batch (or set by the user)."""

    task: Task
    reason: str = ""  # why it was chosen; "" where the user set it
    ignore_label: int | None = None
    classes_last: bool = False  # (N, T, C) instead of (N, C, T)
    threshold: float = 0.0  # of one output column: 0 for logits, 0.5 where the outputs are probabilities
    lenient: bool = False  # a metric of the user's own governs: targets that do not fit drop the task's figures


@dataclass(frozen=True)
class Task:
    """One kind of model. `record` keeps of a batch what the figures need, `labelled` the class decisions, where there are."""

    name: str
    help: str  # one line
    needs: str  # shapes of outputs and targets, for messages
    figures: tuple[Figure, ...] = ()
    record: Callable[[Seen, Reading], dict[str, Tensor]] | None = None
    labelled: Callable[[Seen, Reading], Labelled] | None = None
    predicted: Callable[[Tensor, Reading], Tensor] | None = None  # classes, without targets: for agreement
    sample: str = "sample"
    dims: tuple[int, ...] = ()  # that scores may have; (): any
    position: str = ""  # what a sample has many of: pixels, tokens
