"""How the learning rate moves: the schedulers of `torch.optim.lr_scheduler` by name, after a linear warm-up.

With W warm-up epochs of S steps each, step i < W·S uses lr·(i+1)/(W·S). From then on cosine falls from step to step
and would reach `min_lr` one step after the last (Loshchilov & Hutter 2017): one epoch of fine-tuning anneals as well;
onecycle and cyclic go step by step too. In epoch e ≥ W the others use what they say for epoch e − W, and so do all
where the length of an epoch is not known.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import optim
from torch.optim import lr_scheduler

from compress.errors import InputError
from compress.training.arguments import call, check_arguments, named
from compress.training.names import SCHEDULERS
from compress.training.optimizers import trial_optimizer

if TYPE_CHECKING:
    from compress.training.options import TrainOptions

BY_STEP = ("cosine", "onecycle", "cyclic")
# Why a scheduler cannot be named.
REFUSED = dict.fromkeys(
    ("sequential", "chained"), "is made of other schedulers; name one of them, with warmup_epochs for the rise"
)


def _plateau(o: TrainOptions, steps: int, rising: bool) -> dict[str, Any]:
    found: dict[str, Any] = {
        "mode": "max" if rising else "min",
        "factor": o.gamma,
        "patience": o.plateau_patience,
        "min_lr": o.min_lr,
    }
    if not {"threshold", "threshold_mode"} & set(o.scheduler_args):  # given one of them, torch's defaults hold
        found |= {"threshold": o.min_delta, "threshold_mode": "abs"}
    return found


def _onecycle(o: TrainOptions, steps: int, rising: bool) -> dict[str, Any]:
    length = (
        {} if {"epochs", "steps_per_epoch", "total_steps"} & set(o.scheduler_args) else {"total_steps": _left(o, steps)}
    )
    return {"max_lr": o.lr, **length}


def _left(o: TrainOptions, steps: int) -> int:
    return max(1, (o.epochs - o.warmup_epochs) * steps)


# What the fields of the options say for each class, as arguments of it: (options, steps of an epoch, rising).
FROM_FIELDS: dict[str, Callable[[TrainOptions, int, bool], dict[str, Any]]] = {
    "step": lambda o, steps, rising: {"step_size": o.step_size, "gamma": o.gamma},
    "multistep": lambda o, steps, rising: {"gamma": o.gamma},
    "cosine": lambda o, steps, rising: {"T_max": _left(o, steps), "eta_min": o.min_lr},
    "cosineannealingwarmrestarts": lambda o, steps, rising: {"eta_min": o.min_lr},
    "plateau": _plateau,
    "onecycle": _onecycle,
    "cyclic": lambda o, steps, rising: {"base_lr": float(o.lr or 0) / 10, "max_lr": o.lr},
    "polynomial": lambda o, steps, rising: {"total_iters": _left(o, 1)},
}


def scheduler_class(name: str) -> type:
    """The class of `torch.optim.lr_scheduler` that an option names.

    Raises:
        InputError: there is none, or it cannot be used; says why.
    """
    found: type = getattr(lr_scheduler, named("scheduler", name, SCHEDULERS, REFUSED))
    return found


def make_scheduler(optimizer: optim.Optimizer, options: TrainOptions, steps: int, *, rising: bool) -> Any:
    """Return the scheduler that `options` names; None for `none`. `steps` are those of one epoch.

    Raises:
        InputError: an unknown name or argument (the nearest is given), or a value that the class refuses.
    """
    if options.scheduler == "none":
        if options.scheduler_args:
            raise InputError("scheduler_args change nothing with scheduler 'none'; name the scheduler that takes them")
        return None
    kind = scheduler_class(options.scheduler)
    given = check_arguments(kind, options.scheduler_args)
    derived = FROM_FIELDS.get(options.scheduler)
    arguments = given if derived is None else derived(options, steps, rising) | given
    if options.scheduler in ("onecycle", "cyclic") and "cycle_momentum" not in given:
        arguments["cycle_momentum"] = {"momentum", "betas"} & set(optimizer.defaults) != set()
    if options.scheduler == "plateau":
        _check_mode(given, rising)
    return call(kind, optimizer, **arguments)


def _check_mode(given: dict[str, Any], rising: bool) -> None:
    wanted = "max" if rising else "min"
    if given.get("mode", wanted) != wanted:
        better = "greater" if rising else "smaller"
        raise InputError(f"mode {given['mode']!r}: of what is monitored the {better} is better; leave mode out")


class Schedule:
    """The learning rate of every step; `rising` says whether a greater score is better (plateau).

    `steps_per_epoch` is None where it is not known; there is no warm-up then.
    """

    def __init__(self, optimizer: optim.Optimizer, options: TrainOptions, steps_per_epoch: int | None, *, rising: bool):
        self.optimizer = optimizer
        self.warmup_epochs = options.warmup_epochs
        self.warmup_steps = options.warmup_epochs * (steps_per_epoch or 0)
        self.by_step = options.scheduler in BY_STEP and steps_per_epoch is not None
        self.base = self.lr
        self.step = 0
        self.scheduler = make_scheduler(
            optimizer, options, (steps_per_epoch if self.by_step else None) or 1, rising=rising
        )
        if self.warmup_epochs and abs(self.lr - self.base) > 1e-9 * self.base:
            raise InputError(f"scheduler {options.scheduler!r} starts at a rate of its own; leave warmup_epochs out")

    @property
    def lr(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def before_step(self) -> None:
        """Set the learning rate of the step to come."""
        if self.step < self.warmup_steps:
            for group in self.optimizer.param_groups:
                group["lr"] = self.base * (self.step + 1) / self.warmup_steps
        elif self.by_step and self.step > self.warmup_steps and not self._finished():
            self.scheduler.step()
        self.step += 1

    def _finished(self) -> bool:
        """Whether the scheduler has gone all its way, so that one more step would turn it back (or raise)."""
        last = getattr(self.scheduler, "T_max", None)
        if last is None and (total := getattr(self.scheduler, "total_steps", None)) is not None:
            last = total - 1
        return last is not None and self.scheduler.last_epoch >= last

    def after_epoch(self, epoch: int, score: float) -> None:
        """Move on after `epoch` (counted from 0), whose watched value is `score`."""
        if self.scheduler is None or self.by_step or epoch < self.warmup_epochs:
            return
        if isinstance(self.scheduler, lr_scheduler.ReduceLROnPlateau):
            self.scheduler.step(score)
        elif not self._finished() or isinstance(self.scheduler, lr_scheduler.CosineAnnealingLR):
            self.scheduler.step()

    def watch(self, *, rising: bool) -> None:
        """Let the plateau follow a figure of this direction, before the first epoch."""
        if isinstance(self.scheduler, lr_scheduler.ReduceLROnPlateau):
            self.scheduler.mode = "max" if rising else "min"
            self.scheduler._reset()

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "scheduler": _plain(self.scheduler.state_dict()) if self.scheduler else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state, towards this run's own end: more epochs stretch what is left of a falling rate."""
        self.step = state["step"]
        if self.scheduler is None:
            return
        own = {name: vars(self.scheduler)[name] for name in LENGTHS if name in vars(self.scheduler)}
        self.scheduler.load_state_dict(state["scheduler"])
        if all(vars(self.scheduler)[name] == value for name, value in own.items()):
            return
        vars(self.scheduler).update(own)
        if hasattr(self.scheduler, "_get_closed_form_lr") and self.step > self.warmup_steps:
            for group, rate in zip(self.optimizer.param_groups, self.scheduler._get_closed_form_lr()):
                group["lr"] = rate


# Attributes of torch's schedulers that hold the length of the run.
LENGTHS = ("T_max", "total_steps", "_schedule_phases", "total_iters")


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    """Without functions, which a checkpoint that is read safely cannot hold; the scheduler made anew has its own."""
    return {key: value for key, value in state.items() if not callable(value) and not key.endswith("_fn_ref")}


def check_optimizer_and_scheduler(options: TrainOptions) -> None:
    """Make the optimizer and the scheduler of `options` over one weight, so that they refuse before anything starts.

    Raises:
        InputError: an unknown name or argument, or a value that is refused.
    """
    known = options.optimizer != "auto"
    rate = 0.01 if options.lr is None or isinstance(options.lr, str) else options.lr
    with_rate = options.settled(lr=rate, optimizer=options.optimizer if known else "sgd")
    if not known and options.optimizer_args:
        raise InputError("optimizer_args need the optimizer that takes them; name it with optimizer")
    optimizer = trial_optimizer(with_rate)
    rising = options.scheduler_args.get("mode") == "max"  # the direction of what is monitored is not known yet
    Schedule(optimizer, with_rate, 10, rising=rising)
