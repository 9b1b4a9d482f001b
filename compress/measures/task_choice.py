"""Chooses the task from the shapes and types of outputs and targets of the first batch, with the reason."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from compress.measures.classes import IGNORED
from compress.measures.task import Reading, Task
from compress.measures.tasks import OTHER, TASKS

FEWEST = 8  # outputs that must lie in [0, 1] before they are taken for probabilities


def choose(
    task: str, scores: Tensor, target: Any, *, ignore_label: int | None = None, lenient: bool = False
) -> Reading:
    """Return how to read this data: by the task that the user named, else by what outputs and targets look like.

    Args:
        scores: the first output of the float model on the first batch.
        lenient: a metric of the user's own governs; targets that fit no task are then no fault.
    """
    scores, target = scores.detach(), as_target(target)
    chosen, reason = (TASKS[task], "") if task != "auto" else _auto(scores, target, ignore_label)
    last = chosen.name == "tokens" and _classes_last(scores, target)
    threshold = _threshold(chosen, scores)
    if threshold and not reason:
        reason = "outputs in [0, 1] are read as probabilities"
    elif threshold:
        reason += ", and outputs in [0, 1] as probabilities"
    return Reading(chosen, reason, ignore_label, last, threshold, lenient and task == "auto")


def as_target(target: Any) -> Any:
    """Arrays and lists of numbers become tensors; anything else stays as it is."""
    if isinstance(target, np.ndarray) and target.dtype.kind in "fiub":
        return torch.as_tensor(target)
    if isinstance(target, list) and target and all(isinstance(item, (int, float)) for item in target):
        return torch.tensor(target)
    return target


def arranged(scores: Tensor, target: Any, reading: Reading) -> tuple[Tensor, Any]:
    """Bring a batch into the one form that tasks read: classes in dimension 1, targets without an axis of one."""
    target = as_target(target)
    name = reading.task.name
    if name == "binary":
        scores = scores.reshape(len(scores), -1)
        if isinstance(target, Tensor):
            target = target.reshape(-1) if target.numel() == len(scores) else target
        return scores, target
    if reading.classes_last:
        scores = scores.movedim(-1, 1)
    if reading.task.labelled is not None and isinstance(target, Tensor):
        if target.dim() == scores.dim() and target.dim() > 1 and target.shape[1] == 1:
            target = target.squeeze(1)
        elif name == "classification" and target.shape == scores.shape and _one_hot(target):
            target = target.argmax(1)
    return scores, target


def _auto(scores: Tensor, target: Any, ignore_label: int | None) -> tuple[Task, str]:
    shapes = f"outputs {_shape(scores)}"
    if target is None:
        return _without_targets(scores)
    if not isinstance(target, Tensor):
        return OTHER, f"{shapes} with targets that are no tensor ({type(target).__name__})"
    what = f"{shapes} with targets {_shape(target)}"
    flat = target.squeeze(1) if target.dim() > 1 and target.shape[1] == 1 else target
    if not scores.is_floating_point() or not scores.dim():
        return OTHER, f"{what}: the first output holds no scores"
    values = flat[flat != IGNORED] if ignore_label is None else flat[(flat != IGNORED) & (flat != ignore_label)]
    yes_no = bool(((values == 0) | (values == 1)).all())
    if target.is_floating_point():
        return _of_floats(scores, target, yes_no, what)
    return _of_integers(scores, target, flat, yes_no, what)


def _of_floats(scores: Tensor, target: Tensor, yes_no: bool, what: str) -> tuple[Task, str]:
    if yes_no and target.shape == scores.shape and _columns(scores) > 1 and scores.dim() == 2:
        return (TASKS["classification"] if _one_hot(target) else TASKS["multilabel"]), f"{what} of 0 and 1"
    if target.numel() != scores.numel() or len(target) != len(scores):
        return OTHER, f"{what} of fractions, which are of another size"
    if yes_no and _columns(scores) == 1 and scores.dim() != 3:
        return TASKS["binary" if scores.dim() <= 2 else "segmentation"], f"{what} of 0 and 1"
    return TASKS["regression"], f"{what} of fractions"


def _of_integers(scores: Tensor, target: Tensor, flat: Tensor, yes_no: bool, what: str) -> tuple[Task, str]:
    what += " of whole numbers"
    if _columns(scores) == 1 and scores.dim() <= 2 and flat.shape == (len(scores),):
        return TASKS["binary" if yes_no else "regression"], what
    if scores.dim() == 2 and flat.shape == (len(scores),):
        return TASKS["classification"], what
    if scores.dim() == 2 and target.shape == scores.shape and yes_no:
        return TASKS["multilabel"], f"{what}, 0 and 1"
    if scores.dim() == 3 and flat.dim() == 2 and (_fits(scores, flat) or flat.shape == scores.shape[:2]):
        return TASKS["tokens"], what
    if scores.dim() >= 4 and _fits(scores, flat):
        return TASKS["segmentation"], what
    return OTHER, f"{what}, which fit no task"


def _without_targets(scores: Tensor) -> tuple[Task, str]:
    reason = f"outputs {_shape(scores)} without targets"
    if scores.dim() != 2 or scores.shape[1] < 2 or not scores.is_floating_point():
        return OTHER, reason
    lengths = scores.float().norm(dim=1)
    if bool(((lengths - 1).abs() < 1e-3).all()) and bool((scores < 0).any()):
        return TASKS["embedding"], f"{reason}, all of length 1"
    return TASKS["classification"], reason


def _fits(scores: Tensor, target: Tensor) -> bool:
    return target.shape == (scores.shape[0], *scores.shape[2:])


def _columns(scores: Tensor) -> int:
    return scores.shape[1] if scores.dim() > 1 else 1


def _one_hot(target: Tensor) -> bool:
    return target.dim() == 2 and bool(((target == 0) | (target == 1)).all()) and bool((target.sum(1) == 1).all())


def _classes_last(scores: Tensor, target: Any) -> bool:
    """(N, T, C) beside targets (N, T); where (N, C, T) fits as well, that is PyTorch's order and wins."""
    if scores.dim() != 3 or not isinstance(target, Tensor):
        return False
    return not _fits(scores, target) and target.shape[:2] == scores.shape[:2]


def _threshold(task: Task, scores: Tensor) -> float:
    """0.5 where one column (or one for each label) holds probabilities, 0 where it holds logits."""
    single = task.name in ("binary", "segmentation") and _columns(scores) == 1
    if not (single or task.name == "multilabel") or scores.numel() < FEWEST:
        return 0.0
    return 0.5 if float(scores.min()) >= 0 and float(scores.max()) <= 1 else 0.0


def _shape(value: Tensor) -> str:
    return "(" + ", ".join(["N", *map(str, value.shape[1:])]) + (",)" if value.dim() == 1 else ")")
