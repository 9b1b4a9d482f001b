"""Right answers, changed answers and confusions of one model, class by class."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from compress.measures.task import Labelled

MOST_CONFUSED = 20


@dataclass
class ClassCounts:
    """Nothing here grows with the data but the pairs that are confused."""

    right: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    total: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    confusions: Counter[tuple[int, int]] = field(default_factory=Counter)
    agreed: int = 0
    compared: int = 0
    lost: int = 0  # right in the baseline, wrong here
    won: int = 0

    def add(self, given: Labelled, reference: Labelled | None) -> None:
        """Count one batch of labelled positions; `reference` is the baseline's."""
        target, predicted = given.target[given.counted], given.predicted[given.counted]
        if not len(self.total):
            self.right, self.total = torch.zeros(2, given.classes, dtype=torch.int64)
        wrong = predicted != target
        self.total += target.bincount(minlength=given.classes)
        self.right += target[~wrong].bincount(minlength=given.classes)
        pairs = target[wrong] * given.classes + predicted[wrong]
        found, counts = pairs.unique(return_counts=True)
        self.confusions.update({divmod(p, given.classes): n for p, n in zip(found.tolist(), counts.tolist())})
        if reference is not None and reference.right.shape == given.right.shape:
            self.lost += int((reference.right & ~given.right).sum())
            self.won += int((given.right & ~reference.right).sum())

    def compare(self, classes: Tensor, reference: Tensor) -> None:
        """Count the positions that have the baseline's class."""
        if classes.shape == reference.shape:
            self.agreed += int((classes == reference).sum())
            self.compared += classes.numel()

    @property
    def agreement(self) -> float | None:
        return self.agreed / self.compared if self.compared else None

    def as_extra(self) -> dict[str, Any]:
        """`class_right`, `class_total` and `confusions` as plain values; nothing where no label was counted."""
        if not len(self.total) or not int(self.total.sum()):
            return {}
        seen = (self.total > 0).nonzero().flatten().tolist()
        return {
            "class_right": {str(i): int(self.right[i]) for i in seen},
            "class_total": {str(i): int(self.total[i]) for i in seen},
            "confusions": [[a, b, n] for (a, b), n in sorted(self.confusions.most_common(MOST_CONFUSED))],
        }
