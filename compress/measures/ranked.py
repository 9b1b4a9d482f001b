"""Figures of a ranking, computed by torchmetrics (extra `metrics`): the one door to that library."""

from __future__ import annotations

import importlib.util
from typing import Any

from torch import Tensor

INSTALL = "pip install 'torch-compress[metrics]'"


def installed() -> bool:
    return importlib.util.find_spec("torchmetrics") is not None


def area_under_curve(scores: Tensor, target: Tensor) -> float | None:
    """Area under the ROC curve of (N,) scores; None where only one class occurs."""
    if not len(target) or int(target.min()) == int(target.max()):
        return None
    return float(_functional().binary_auroc(_ranked(scores), target.long()))


def mean_average_precision(scores: Tensor, target: Tensor) -> float | None:
    """Average precision of each label of (N, C), averaged over the labels that occur."""
    there = target.sum(0) > 0
    if not bool(there.any()):
        return None
    scores, target = scores[:, there], target[:, there]
    one = scores.shape[1] == 1
    if one:
        return float(_functional().binary_average_precision(_ranked(scores[:, 0]), target[:, 0].long()))
    ranks = _ranked(scores.flatten()).view_as(scores)
    labels = scores.shape[1]
    return float(_functional().multilabel_average_precision(ranks, target.long(), num_labels=labels, average="macro"))


def _ranked(scores: Tensor) -> Tensor:
    """Ranks in [0, 1] instead of scores: torchmetrics would put logits through a sigmoid, where large ones become equal."""
    ranks = scores.unique(return_inverse=True)[1].double()
    return ranks / max(1.0, float(ranks.max()))


def _functional() -> Any:
    import compress.loading.torchvision_ops  # noqa: F401  torchmetrics imports torchvision, which not every wheel survives

    return importlib.import_module("torchmetrics.functional.classification")
