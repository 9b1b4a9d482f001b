"""Several labels at once for each sample: mAP, F1."""

from __future__ import annotations

from torch import Tensor

from compress.errors import DataError
from compress.measures import ranked
from compress.measures.figure import Figure, Records
from compress.measures.task import Reading, Seen, Task


def record(seen: Seen, reading: Reading) -> dict[str, Tensor]:
    scores, target = seen.scores, seen.target
    if (
        not isinstance(target, Tensor)
        or target.shape != scores.shape
        or not bool(((target == 0) | (target == 1)).all())
    ):
        got = tuple(target.shape) if isinstance(target, Tensor) else type(target).__name__
        raise DataError(
            f"task multilabel takes {TASK.needs}; the model gives {tuple(scores.shape)}, the targets are {got}"
        )
    return {"scores": scores, "target": target.bool(), "predicted": scores > reading.threshold}


def mean_average_precision(records: Records) -> float | None:
    return ranked.mean_average_precision(records["scores"], records["target"])


def f1(records: Records) -> float | None:
    """2·tp / (2·tp + fp + fn) over all labels of all samples (micro)."""
    both = int(records["target"].sum()) + int(records["predicted"].sum())
    return 2 * int((records["target"] & records["predicted"]).sum()) / both if both else None


MAP = Figure(
    "mAP",
    "average precision of each label, averaged over labels",
    mean_average_precision,
    needs="labels, torchmetrics",
)
F1 = Figure("micro F1", "F1 over all labels of all samples", f1)

TASK = Task(
    "multilabel",
    "several labels at once for each sample",
    "outputs (N, C) with targets (N, C) of 0 and 1",
    (MAP, F1),
    record,
)
