"""The state of one training run: what callbacks are handed, what checkpoints hold."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from compress.training import checkpoints
from compress.training.averaging import Average
from compress.training.batchnorm import Counted
from compress.training.distillation import Objective
from compress.training.distributed import World
from compress.training.early_stopping import EarlyStopping
from compress.training.history import Record
from compress.training.loaders import Batches
from compress.training.options import TrainOptions
from compress.training.schedulers import Schedule
from compress.training.seeds import random_states, restore_random_states


@dataclass
class Run:
    """One training run. `epoch` and `step` count what is finished; `module` is the copy being trained."""

    module: nn.Module
    wrapped: nn.Module  # the module, or the DDP around it
    options: TrainOptions
    world: World
    batches: Batches
    objective: Objective
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    scaler: torch.amp.GradScaler
    watched: str  # the figure that decides which epoch is best
    stopping: EarlyStopping
    average: Average | None
    counted: Counted
    folder: Path | None = None
    after_step: Sequence[Callable[[Run], None]] = ()
    epoch: int = 0
    step: int = 0
    history: list[Record] = field(default_factory=list)
    best_model: dict[str, Tensor] | None = None  # kept where early stopping will restore it

    @property
    def last_path(self) -> Path | None:
        return self.folder / "checkpoints" / "last.pt" if self.folder else None

    def unsynchronized(self) -> contextlib.AbstractContextManager[Any]:
        """Accumulate gradients without exchanging them."""
        return self.wrapped.no_sync() if isinstance(self.wrapped, DistributedDataParallel) else contextlib.nullcontext()

    def judged(self) -> contextlib.AbstractContextManager[nn.Module]:
        """The module as it is evaluated and kept: with averaged weights where there are any."""
        return self.average.applied(self.module) if self.average else contextlib.nullcontext(self.module)

    def kept(self) -> str:
        """How to go on after a failure, as the end of a sentence."""
        found = self.last_path is not None and self.last_path.exists()
        return f"; the last good checkpoint is {str(self.last_path)!r}" if found else ""

    def weights(self) -> dict[str, Tensor]:
        """A copy of the weights as they are evaluated."""
        values = self.average.values if self.average else self.module.state_dict()
        return {name: value.detach().clone() for name, value in values.items()}

    def save(self, *, best: bool) -> None:
        """Write the last checkpoint, the best one before it where this epoch is that."""
        if self.last_path is None:
            return
        generator = self.batches.generator
        own = random_states(self.world.device) | {"loader": generator.get_state() if generator is not None else None}
        random = self.world.gather(own)
        if not self.world.leads:
            return
        state: dict[str, Any] = {
            "model": self.average.values if self.average else self.module.state_dict(),
            "raw_model": self.module.state_dict() if self.average else None,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "stopping": self.stopping.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "random": random,
            "options": self.options.as_dict(),
            "history": self.history,
        }
        if best:
            checkpoints.save(state, self.last_path.with_name("best.pt"))
        checkpoints.save({**state, "best_model": self.best_model}, self.last_path)

    def resume(self, path: Path) -> None:
        """Continue from the checkpoint `path`.

        Raises:
            WeightsError: it cannot be read.
            TrainingError: it is of another model, or was written with other options.
        """
        state = checkpoints.read(path)
        checkpoints.check_model(state["model"], self.module, path)
        checkpoints.check_options(state["options"], self.options, path)
        self.module.load_state_dict(state["raw_model"] or state["model"])
        if self.average:
            self.average.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["scheduler"])
        self.scaler.load_state_dict(state["scaler"])
        self.stopping.load_state_dict(state["stopping"])
        self.epoch, self.step, self.history = state["epoch"], state["step"], list(state["history"])
        self.best_model = state["best_model"]
        if self.world.rank < len(state["random"]):  # more processes than before: the new ones keep their seed
            own = state["random"][self.world.rank]
            restore_random_states(own, self.world.device)
            if own["loader"] is not None and self.batches.generator is not None:
                self.batches.generator.set_state(own["loader"])
