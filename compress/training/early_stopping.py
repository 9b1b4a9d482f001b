"""The best epoch so far, known by one watched value; stops the run when it stays too long ago."""

from __future__ import annotations

import math
from typing import Any


class EarlyStopping:
    """Watches one value. `patience=None` only remembers the best.

    >>> watch = EarlyStopping(patience=2, rising=True)
    >>> [watch.update(epoch, score) for epoch, score in enumerate([0.5, 0.7, 0.6, 0.7])]
    [True, True, False, False]
    >>> watch.exhausted, watch.best_epoch
    (True, 1)
    """

    def __init__(self, *, patience: int | None = None, min_delta: float = 0.0, rising: bool = False):
        self.patience = patience
        self.min_delta = min_delta
        self.rising = rising
        self.best: float | None = None
        self.best_epoch: int | None = None
        self.waited = 0

    def update(self, epoch: int, score: float) -> bool:
        """Take the value of `epoch`; return whether it is the best so far by more than `min_delta`."""
        if not math.isfinite(score):  # never the best, or nothing could be better than it
            self.waited += 1
            return False
        gain = 0.0 if self.best is None else (score - self.best if self.rising else self.best - score)
        improved = self.best is None or gain > self.min_delta
        if improved:
            self.best, self.best_epoch, self.waited = score, epoch, 0
        else:
            self.waited += 1
        return improved

    def beaten_by(self, score: float) -> bool:
        """Whether `score` is better than the best epoch's, or there is none."""
        return self.best is None or (score > self.best if self.rising else score < self.best)

    @property
    def exhausted(self) -> bool:
        return self.patience is not None and self.waited >= self.patience

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_epoch": self.best_epoch, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.best_epoch, self.waited = state["best"], state["best_epoch"], state["waited"]
