"""Yes or no for each sample, from one logit or two: accuracy, AUC, F1."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import binary_cross_entropy, binary_cross_entropy_with_logits

from compress.measures import ranked
from compress.measures.classes import labelled, losses, predicted
from compress.measures.figure import Figure, Records, ratio
from compress.measures.task import Reading, Seen, Task


def record(seen: Seen, reading: Reading) -> dict[str, Tensor]:
    given = seen.labelled
    assert given is not None
    one = seen.scores.shape[1] == 1
    score = seen.scores[:, 0] if one else seen.scores[:, 1] - seen.scores[:, 0]
    return {
        "target": given.target,
        "predicted": given.predicted,
        "counted": given.counted,
        "right": given.right,
        "score": score,
        "loss": _losses(seen, score, reading) if one else losses(seen),
    }


def _losses(seen: Seen, score: Tensor, reading: Reading) -> Tensor:
    given = seen.labelled
    assert given is not None
    cost = binary_cross_entropy if reading.threshold else binary_cross_entropy_with_logits
    return cost(score, given.target.to(score.dtype), reduction="none") * given.counted


def accuracy(records: Records) -> tuple[Tensor, Tensor]:
    return records["right"], records["counted"]


def auc(records: Records) -> float | None:
    counted = records["counted"].bool()
    return ranked.area_under_curve(records["score"][counted], records["target"][counted])


def f1(records: Records) -> float | None:
    """2·tp / (2·tp + fp + fn) of class 1; None where it occurs in neither."""
    counted = records["counted"].bool()
    target, decided = records["target"][counted] == 1, records["predicted"][counted] == 1
    both = int(target.sum()) + int(decided.sum())
    return 2 * int((target & decided).sum()) / both if both else None


ACCURACY = Figure("accuracy", "share of right answers", lambda kept: ratio(kept, accuracy), terms=accuracy)
AUC = Figure("AUC", "area under the ROC curve", auc, unit="", needs="labels, torchmetrics")
F1 = Figure("F1", "F1 of class 1", f1)

TASK = Task(
    "binary",
    "yes or no for each sample, from one logit or two",
    "outputs (N, 1), (N,) or (N, 2) with targets (N,) of 0 and 1",
    (ACCURACY, AUC, F1),
    record,
    labelled,
    predicted,
    dims=(2,),
)
