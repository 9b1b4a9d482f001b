"""A class for each pixel: mIoU, pixel accuracy."""

from __future__ import annotations

from torch import Tensor

from compress.measures.classes import counts, labelled, losses, mean_iou, predicted
from compress.measures.figure import Figure, Records, ratio
from compress.measures.task import Reading, Seen, Task


def record(seen: Seen, reading: Reading) -> dict[str, Tensor]:
    """Three counts for each image and class: with them an image is one sample, however many pixels it has."""
    given = seen.labelled
    assert given is not None
    right, decided, labels = counts(given)
    kept = {"right": right, "predicted": decided, "labelled": labels}
    return kept if seen.scores.shape[1] == 1 else {**kept, "loss": losses(seen)}


def pixels(records: Records) -> tuple[Tensor, Tensor]:
    return records["right"].sum(1), records["labelled"].sum(1)


def iou(records: Records) -> float | None:
    return mean_iou(*(records[name].sum(0) for name in ("right", "predicted", "labelled")))


MIOU = Figure("mIoU", "intersection over union of each class, averaged over classes", iou)
PIXELS = Figure(
    "pixel accuracy", "share of pixels with the right class", lambda kept: ratio(kept, pixels), terms=pixels
)

TASK = Task(
    "segmentation",
    "a class for each pixel (voxel)",
    "outputs (N, C, H, W) with targets (N, H, W) of class numbers",
    (MIOU, PIXELS),
    record,
    labelled,
    predicted,
    dims=(4, 5),
    sample="image",
    position="pixel",
)
