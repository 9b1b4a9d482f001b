"""How the learning rate moves: a linear warm-up and a cosine step by step, other schedulers epoch by epoch.

With W warm-up epochs of S steps each, step i < W·S uses lr·(i+1)/(W·S). From then on cosine falls from step to step
and would reach `min_lr` one step after the last (Loshchilov & Hutter 2017): one epoch of fine-tuning anneals as well. In
epoch e ≥ W the others use what they say for epoch e − W. So does cosine where the length of an epoch is not known.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import optim
from torch.optim import lr_scheduler

from compress.errors import InputError, nearest
from compress.training.options import TrainOptions

# (optimizer, options, steps of one epoch, whether a greater score is better) → scheduler
SCHEDULERS: dict[str, Callable[[optim.Optimizer, TrainOptions, int, bool], Any]] = {
    "none": lambda optimizer, o, steps, rising: None,
    "step": lambda optimizer, o, steps, rising: lr_scheduler.StepLR(optimizer, o.step_size, gamma=o.gamma),
    "cosine": lambda optimizer, o, steps, rising: lr_scheduler.CosineAnnealingLR(
        optimizer, T_max=(o.epochs - o.warmup_epochs) * steps, eta_min=o.min_lr
    ),
    "plateau": lambda optimizer, o, steps, rising: lr_scheduler.ReduceLROnPlateau(
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
    """The learning rate of every step; `rising` says whether a greater score is better (plateau).

    `steps_per_epoch` is None where nobody knows it; there is no warm-up then.
    """

    def __init__(self, optimizer: optim.Optimizer, options: TrainOptions, steps_per_epoch: int | None, *, rising: bool):
        if options.scheduler not in SCHEDULERS:
            raise InputError(f"unknown scheduler {options.scheduler!r}; {nearest(options.scheduler, SCHEDULERS)}")
        self.optimizer = optimizer
        self.warmup_epochs = options.warmup_epochs
        self.warmup_steps = options.warmup_epochs * (steps_per_epoch or 0)
        self.by_step = options.scheduler == "cosine" and steps_per_epoch is not None
        self.base = options.lr
        self.step = 0
        self.scheduler = SCHEDULERS[options.scheduler](optimizer, options, steps_per_epoch or 1, rising)

    @property
    def lr(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def before_step(self) -> None:
        """Set the learning rate of the step to come."""
        if self.step < self.warmup_steps:
            for group in self.optimizer.param_groups:
                group["lr"] = self.base * (self.step + 1) / self.warmup_steps
        elif self.by_step and self.step > self.warmup_steps and self.scheduler.last_epoch < self.scheduler.T_max:
            self.scheduler.step()
        self.step += 1

    def after_epoch(self, epoch: int, score: float) -> None:
        """Move on after `epoch` (counted from 0), whose watched value is `score`."""
        if self.scheduler is None or self.by_step or epoch < self.warmup_epochs:
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
