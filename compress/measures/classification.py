"""One of several classes for each sample: top-1, top-5, macro F1, balanced accuracy."""

from __future__ import annotations

from torch import Tensor

from compress.measures.classes import balanced_accuracy, by_class, labelled, losses, macro_f1, predicted
from compress.measures.figure import Figure, Records, ratio
from compress.measures.task import Reading, Seen, Task

FEWEST_CLASSES = 6  # top-5 of five classes is always right


def record(seen: Seen, reading: Reading) -> dict[str, Tensor]:
    given = seen.labelled
    assert given is not None
    kept = {
        "target": given.target,
        "predicted": given.predicted,
        "counted": given.counted,
        "right": given.right,
        "loss": losses(seen),
    }
    if given.classes >= FEWEST_CLASSES:
        best = seen.scores.topk(5, 1).indices
        kept["right of 5"] = (best == given.target.unsqueeze(1)).any(1) & given.counted
    return kept


def top1(records: Records) -> tuple[Tensor, Tensor]:
    return records["right"], records["counted"]


def top5(records: Records) -> float | None:
    if "right of 5" not in records:
        return None
    return ratio(records, lambda kept: (kept["right of 5"], kept["counted"]))


def balanced(records: Records) -> float | None:
    right, _, given = by_class(records)
    return balanced_accuracy(right, given)


TOP1 = Figure("top-1", "share of samples with the right class first", lambda kept: ratio(kept, top1), terms=top1)
TOP5 = Figure("top-5", "share of samples with the right class among the first five", top5)
MACRO_F1 = Figure("macro F1", "F1 of each class, averaged over classes", lambda kept: macro_f1(*by_class(kept)))
BALANCED = Figure("balanced accuracy", "share that is right of each class, averaged over classes", balanced)

TASK = Task(
    "classification",
    "one of several classes for each sample",
    "outputs (N, C) with targets (N,) of class numbers",
    (TOP1, TOP5, MACRO_F1, BALANCED),
    record,
    labelled,
    predicted,
    dims=(2,),
)
