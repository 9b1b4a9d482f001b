"""A class for each token of a sequence: accuracy, F1."""

from __future__ import annotations

from torch import Tensor

from compress.measures.classes import counts, labelled, losses, macro_f1, predicted
from compress.measures.figure import TOTAL, Figure, Records, ratio
from compress.measures.task import Reading, Seen, Task


def record(seen: Seen, reading: Reading) -> dict[str, Tensor]:
    """Counts for each sequence; those for each class over all, because a vocabulary has too many to keep by sequence."""
    given = seen.labelled
    assert given is not None
    right, decided, labels = (value.sum(0) for value in counts(given))
    kept = {
        "right": given.right.flatten(1).sum(1),
        "counted": given.counted.flatten(1).sum(1),
        f"{TOTAL}right": right,
        f"{TOTAL}predicted": decided,
        f"{TOTAL}labelled": labels,
    }
    return kept if seen.scores.shape[1] == 1 else {**kept, "loss": losses(seen)}


def accuracy(records: Records) -> tuple[Tensor, Tensor]:
    return records["right"], records["counted"]


def f1(records: Records) -> float | None:
    return macro_f1(*(records[TOTAL + name] for name in ("right", "predicted", "labelled")))


ACCURACY = Figure(
    "token accuracy", "share of tokens with the right class", lambda kept: ratio(kept, accuracy), terms=accuracy
)
F1 = Figure("macro F1", "F1 of each class of tokens, averaged over classes", f1, needs_totals=True)

TASK = Task(
    "tokens",
    "a class for each token of a sequence",
    "outputs (N, T, C) or (N, C, T) with targets (N, T) of class numbers",
    (ACCURACY, F1),
    record,
    labelled,
    predicted,
    dims=(3,),
    sample="sequence",
    position="token",
)
