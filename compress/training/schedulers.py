"""How the learning rate moves: a linear warm-up step by step, then a scheduler epoch by epoch.

With W warm-up epochs of S steps each, step i < W·S uses lr·(i+1)/(W·S). Epoch e ≥ W uses what the
scheduler says for epoch e − W, so that cosine reaches `min_lr` after the last epoch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import optim
from torch.optim import lr_scheduler

from compress.errors import InputError, nearest
from compress.training.options import TrainOptions

SCHEDULERS: dict[str, Callable[[optim.Optimizer, TrainOptions, bool], Any]] = {
    "none": lambda optimizer, o, rising: None,
    "step": lambda optimizer, o, rising: lr_scheduler.StepLR(optimizer, o.step_size, gamma=o.gamma),
    "cosine": lambda optimizer, o, rising: lr_scheduler.CosineAnnealingLR(
        optimizer, T_max=o.epochs - o.warmup_epochs, eta_min=o.min_lr
    ),
    "plateau": lambda optimizer, o, rising: lr_scheduler.ReduceLROnPlateau(
        optimizer,
        mode="max" if rising else "min",
        factor=o.gamma,
        patience=o.plateau_patience,
        threshold=o.min_delta,
        threshold_mode="abs",
        min_lr=o.min_lr,
    ),
}


class Schedule:
    """The learning rate of every step; `rising` says whether a greater score is better (plateau)."""

    def __init__(self, optimizer: optim.Optimizer, options: TrainOptions, steps_per_epoch: int, *, rising: bool):
        if options.scheduler not in SCHEDULERS:
            raise InputError(f"unknown scheduler {options.scheduler!r}; {nearest(options.scheduler, SCHEDULERS)}")
        self.optimizer = optimizer
        self.warmup_epochs = options.warmup_epochs
        self.warmup_steps = options.warmup_epochs * steps_per_epoch
        self.base = options.lr
        self.step = 0
        self.scheduler = SCHEDULERS[options.scheduler](optimizer, options, rising)

    @property
    def lr(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def before_step(self) -> None:
        """Set the learning rate of the step to come."""
        if self.step < self.warmup_steps:
            for group in self.optimizer.param_groups:
                group["lr"] = self.base * (self.step + 1) / self.warmup_steps
        self.step += 1

    def after_epoch(self, epoch: int, score: float) -> None:
        """Move on after `epoch` (counted from 0), whose watched value is `score`."""
        if self.scheduler is None or epoch < self.warmup_epochs:
            return
        if isinstance(self.scheduler, lr_scheduler.ReduceLROnPlateau):
            self.scheduler.step(score)
        else:
            self.scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "scheduler": self.scheduler.state_dict() if self.scheduler else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
