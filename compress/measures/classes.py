"""What tasks with classes share: labels held to their range, decisions, counts for each class."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from compress.counting import counted
from compress.errors import DataError
from compress.measures.figure import Records
from compress.measures.task import Labelled, Reading, Seen

IGNORED = -100  # torch's `ignore_index`: positions that no figure counts


def predicted(scores: Tensor, reading: Reading) -> Tensor:
    """The class at each position of (N, C, …); of one column, whether it is above the threshold."""
    if scores.shape[1] == 1:
        return (scores[:, 0] > reading.threshold).long()
    return scores.argmax(1)


def labelled(seen: Seen, reading: Reading) -> Labelled:
    """Set decisions beside labels.

    Raises:
        DataError: targets of another shape, or labels that the model has no class for.
    """
    if seen.scores.dim() not in reading.task.dims:
        raise DataError(_misfit(reading, seen))
    decided = predicted(seen.scores, reading)
    target, classes = seen.target, max(seen.scores.shape[1], 2)
    if not isinstance(target, Tensor) or target.shape != decided.shape:
        raise DataError(_misfit(reading, seen))
    counted = target != IGNORED
    if reading.ignore_label is not None:
        counted &= target != reading.ignore_label
    if target.is_floating_point() and not bool((target[counted] == target[counted].round()).all()):
        raise DataError(f"{_misfit(reading, seen)}; these are fractions, no class numbers")
    target = target.long()
    check_labels(target[counted], classes)
    return Labelled(decided, torch.where(counted, target, 0), counted, classes)


def _misfit(reading: Reading, seen: Seen) -> str:
    got = tuple(seen.target.shape) if isinstance(seen.target, Tensor) else type(seen.target).__name__
    return (
        f"task {reading.task.name} takes {reading.task.needs}; the model gives {tuple(seen.scores.shape)}, the targets "
        f"are {got if got != 'NoneType' else 'missing'}"
    )


def check_labels(target: Tensor, classes: int) -> None:
    """Refuse labels that the model has no class for.

    Raises:
        DataError: a label below 0 or not below `classes`.
    """
    if not target.numel():
        return
    low, high = int(target.min()), int(target.max())
    if low < 0 or high >= classes:
        worst = low if low < 0 else high
        raise DataError(
            f"label {worst} is out of range: the model has {counted(classes, 'class', 'classes')} (0 to {classes - 1}); check the data's labels, "
            f"give the class order with --classes, or leave that label out with --ignore-label {worst} (as {IGNORED} always is)"
        )


def losses(seen: Seen) -> Tensor:
    """Cross-entropy of each sample, summed over its positions."""
    given = seen.labelled
    assert given is not None
    target = torch.where(given.counted, given.target, IGNORED)
    each = cross_entropy(seen.scores, target, ignore_index=IGNORED, reduction="none")
    return each.flatten(1).sum(1) if each.dim() > 1 else each


def counts(given: Labelled) -> tuple[Tensor, Tensor, Tensor]:
    """(right, predicted, labelled) for each sample and class: three of (N, C)."""
    samples, classes = len(given.target), given.classes
    row = torch.arange(samples).view(-1, *[1] * (given.target.dim() - 1)) * classes

    def counted(values: Tensor, where: Tensor) -> Tensor:
        return (row + values)[where].bincount(minlength=samples * classes).view(samples, classes)

    return (
        counted(given.target, given.right),
        counted(given.predicted, given.counted),
        counted(given.target, given.counted),
    )


def by_class(records: Records) -> tuple[Tensor, Tensor, Tensor]:
    """(right, predicted, labelled) of each class over all samples, of records with `target`, `predicted`, `counted`."""
    counted = records["counted"].bool()
    target, decided = records["target"][counted].long(), records["predicted"][counted].long()
    classes = int(max(target.max(), decided.max())) + 1 if len(target) else 0
    right = target[target == decided]
    return (
        right.bincount(minlength=classes),
        decided.bincount(minlength=classes),
        target.bincount(minlength=classes),
    )


def macro_f1(right: Tensor, decided: Tensor, given: Tensor) -> float | None:
    """Mean over classes of 2·right / (predicted + labelled); classes that occur in neither do not count."""
    total = decided + given
    there = total > 0
    return float((2 * right[there].double() / total[there].double()).mean()) if bool(there.any()) else None


def balanced_accuracy(right: Tensor, given: Tensor) -> float | None:
    """Mean over the classes that occur of the share that is right."""
    there = given > 0
    return float((right[there].double() / given[there].double()).mean()) if bool(there.any()) else None


def mean_iou(right: Tensor, decided: Tensor, given: Tensor) -> float | None:
    """Mean over classes of intersection / union; classes that occur in neither do not count."""
    union = decided + given - right
    there = union > 0
    return float((right[there].double() / union[there].double()).mean()) if bool(there.any()) else None
