"""The state of one training run: what callbacks are handed, what checkpoints hold."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from compress.measures.opening import Measures
from compress.training import checkpoints
from compress.training.averaging import Average
from compress.training.criterion import Criterion
from compress.training.distillation import Objective
from compress.training.distributed import World
from compress.training.early_stopping import EarlyStopping
from compress.training.history import Record
from compress.training.loaders import Batches
from compress.training.metrics import Tally
from compress.training.options import TrainOptions
from compress.training.schedulers import Schedule
from compress.training.seeds import random_states, restore_random_states
from compress.training.sync_batchnorm import Counted
from compress.training.within import Within
from compress.training.zeros import Zeros


@dataclass
class Run:
    """One training run. `epoch` and `step` count what is finished; `module` is the copy being trained."""

    module: nn.Module
    wrapped: nn.Module  # the module, or the DDP around it
    options: TrainOptions
    world: World
    batches: Batches
    criterion: Criterion
    objective: Objective
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    scaler: torch.amp.GradScaler
    stopping: EarlyStopping
    average: Average | None
    counted: Counted
    zeros: Zeros
    within: Within
    measures: Measures | None = None
    watched: str = ""  # the figure that decides which epoch is best, known once the start is judged
    folder: Path | None = None
    after_step: Sequence[Callable[[Run], None]] = ()
    epoch: int = 0
    step: int = 0
    history: list[Record] = field(default_factory=list)
    best_model: dict[str, Tensor] | None = None
    start: Record | None = None  # figures of the network as it came, where there is data to judge it on
    start_classes: int = 0  # of the outputs, where they are class scores
    start_loss: float | None = None  # the objective at the start, on the first batches
    loses_in_training: bool = False  # the model gives its losses in training mode only, as detectors do
    stopped: str = ""  # why the run stopped before its end, where it diverged
    saved_at: float = field(default_factory=time.monotonic)
    epoch_random: dict[str, Any] = field(default_factory=dict)  # random states before the epoch under way
    resumed: dict[str, Any] = field(default_factory=dict)  # random states of a run that goes on within an epoch

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

    def better(self, score: float, other: float) -> bool:
        """Whether the monitored figure `score` is better than `other`."""
        return score > other if self.stopping.rising else score < other

    def watch(self, figure: str, *, rising: bool) -> None:
        """Let another figure decide, before the first epoch."""
        self.watched, self.stopping.rising = figure, rising
        self.schedule.watch(rising=rising)

    def begin_epoch(self) -> int:
        """Make ready for an epoch; return how many of its steps are done already (of a run that was resumed within)."""
        if self.resumed:
            self.restore_random(self.resumed["epoch"])
            return self.within.groups
        self.within = Within(Tally(self.criterion))
        self.epoch_random = self.random()
        return 0

    def reach_saved_state(self) -> None:
        """Once the steps that are done have been passed over: random states as they were saved."""
        if self.resumed:
            self.restore_random(self.resumed["now"])
            self.resumed = {}

    def save_within(self) -> None:
        """Write a checkpoint within an epoch where the last one is too old; the first process's clock decides."""
        if self.folder is None:
            return
        due = float(self.world.leads and time.monotonic() - self.saved_at > 60 * self.options.checkpoint_minutes)
        if self.world.sum([due])[0]:
            self.save(best=False, within=True)

    def random(self) -> dict[str, Any]:
        """Every random state of this process, that of a loader which is not ours included."""
        generator = self.batches.generator
        return random_states(self.world.device) | {"loader": generator.get_state() if generator is not None else None}

    def restore_random(self, state: dict[str, Any]) -> None:
        restore_random_states(state, self.world.device)
        if state["loader"] is not None and self.batches.generator is not None:
            self.batches.generator.set_state(state["loader"])

    def save(self, *, best: bool, within: bool = False) -> None:
        """Write the last checkpoint, the best one before it where this epoch is that; `within` an epoch what it did."""
        self.saved_at = time.monotonic()
        if self.last_path is None:
            return
        part = {"within": self.within.state_dict(), "epoch_random": self.epoch_random} if within else {}
        random = self.world.gather(self.random() | part)
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
            "start": self.start,
            "start_loss": self.start_loss,
            "start_classes": self.start_classes,
            "watched": self.watched,
        }
        if best:
            checkpoints.save(state, self.last_path.with_name("best.pt"))
        checkpoints.save({**state, "best_model": self.best_model}, self.last_path)

    def resume(self, path: Path) -> int:
        """Continue from the checkpoint `path`; return for how many epochs that run was planned.

        Raises:
            WeightsError: it cannot be read.
            TrainingError: it is of another model, or was written with other options.
        """
        state = checkpoints.read(path)
        checkpoints.check_model(state["model"], self.module, path)
        checkpoints.check_options(state["options"], self.options, path)
        planned = state["options"].get("epochs", self.options.epochs)
        self.module.load_state_dict(state["raw_model"] or state["model"])
        if self.average:
            self.average.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["scheduler"])
        self.scaler.load_state_dict(state["scaler"])
        self.stopping.load_state_dict(state["stopping"])
        self.epoch, self.step, self.history = state["epoch"], state["step"], list(state["history"])
        self.best_model = state["best_model"]
        self.start, self.start_loss = state.get("start"), state.get("start_loss")
        self.start_classes = state.get("start_classes", 0)
        if (watched := state.get("watched", self.watched)) != self.watched:
            self.watch(watched, rising=watched.endswith("top1"))
        if self.world.rank < len(state["random"]):  # more processes than before: the new ones keep their seed
            own = state["random"][self.world.rank]
            self.restore_random(own)
            if "within" in own:
                self.within.load_state_dict(own["within"])
                self.resumed = {"epoch": own["epoch_random"], "now": own}
        return int(planned)
