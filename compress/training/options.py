"""The options of a training run: one frozen dataclass whose field names are the command's and the recipe's."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from compress.errors import InputError, nearest
from compress.options import check_fields, choice, option
from compress.training.loss_table import LOSSES
from compress.training.names import OPTIMIZERS, SCHEDULERS, own_name

# Those that may need arguments, or cannot be used: checked by making one.
RARE = (*list(OPTIMIZERS)[4:], *list(SCHEDULERS)[3:])
KEEP = ("best", "last")
AUTO = "auto"
PRECISIONS = ("float32", "bf16", "fp16")
EVALUATION_PARTS = ("test", "calibration")
MONITORS = ("auto", "loss", "top1")


@dataclass(frozen=True)
class TrainOptions:
    """How to train. `--label-smoothing` on the command line is `label_smoothing` here and in a recipe.

    `batch_size` is the number of samples behind one optimizer step. Neither `accumulate` nor the number
    of processes changes it: each forward pass sees `batch_size / (processes × accumulate)` samples.

    >>> TrainOptions(optimizer="adamw", lr=1e-3, epochs=3).batch_size
    128
    """

    epochs: int = option(10, "passes over the training data", low=1)
    batch_size: int = option(128, "samples per optimizer step, over all processes", low=1)
    accumulate: int = option(1, "forward passes that share one optimizer step", low=1)
    shuffle: bool = option(True, "new order of the samples in every epoch")
    workers: int = option(0, "processes that load data", low=0)
    drop_last: bool = option(False, "leave out the last, smaller batch")
    pin_memory: bool = option(False, "page-locked batches, for CUDA")
    crop_padding: int = option(0, "pad images by so many pixels, then crop back at random", low=0)
    flip: bool = option(False, "mirror half of the images left to right")
    mixup: float = option(0.0, "blend each image with another by Beta(α, α), e.g. 1 with a teacher; 0: off", low=0)

    loss: str = choice(
        "cross_entropy", "what is minimized; model: the model's own; or your module:function", LOSSES, or_own=True
    )
    label_smoothing: float = option(0.0, "share of the target spread over all classes", low=0, high=1)
    optimizer: str = choice(AUTO, "any of torch.optim; auto: adamw for attention, else sgd", (AUTO, *OPTIMIZERS))
    optimizer_args: Mapping[str, Any] = option({}, "argument of the optimizer, such as betas=0.9,0.98", pairs=True)
    lr: float | str | None = option(
        None,
        "learning rate; default: what fits model and optimizer; auto: found by a short test",
        above=0,
        words=(AUTO,),
    )
    momentum: float = option(0.9, "of sgd and rmsprop", low=0, high=1)
    nesterov: bool = option(False, "Nesterov momentum (sgd)")
    weight_decay: float = option(0.0, "L2 penalty (decoupled with adamw)", low=0)
    scheduler: str = choice("cosine", "how the learning rate moves: any of lr_scheduler", ("none", *SCHEDULERS))
    scheduler_args: Mapping[str, Any] = option({}, "argument of the scheduler, such as factor=0.2", pairs=True)
    warmup_epochs: int = option(0, "epochs of linear rise to the learning rate", low=0)
    step_size: int = option(30, "epochs between two drops (step)", low=1)
    gamma: float = option(0.1, "factor of each drop (step, plateau)", above=0, high=1)
    plateau_patience: int = option(5, "epochs without improvement before a drop (plateau)", low=0)
    min_lr: float = option(0.0, "the learning rate falls no lower (plateau, cosine)", low=0)
    clip_norm: float | None = option(None, "largest norm of the whole gradient", above=0)
    clip_value: float | None = option(None, "largest absolute value of each gradient element", above=0)

    precision: str = choice("float32", "arithmetic of the forward pass (autocast)", PRECISIONS)
    recompute: tuple[str, ...] = option((), "gradient checkpointing of this layer, NAME or NAME:SEGMENTS")
    ema_decay: float | None = option(None, "exponential moving average of the weights, e.g. 0.999", above=0, high=1)

    evaluate_on: str = choice("test", "part of the data measured after each epoch", EVALUATION_PARTS)
    monitor: str = choice("auto", "what decides the best epoch; auto: your metric, else top1, else loss", MONITORS)
    keep: str = choice("best", "the weights that are kept: of the best epoch (the start included), or the last", KEEP)
    patience: int | None = option(None, "stop after so many epochs without improvement", low=1)
    min_delta: float = option(0.0, "smallest change that counts as improvement", low=0)
    checkpoint_every: int = option(1, "epochs between two checkpoints", low=1)
    checkpoint_minutes: float = option(30.0, "minutes between two checkpoints within an epoch", above=0)
    hold_zeros: bool = option(True, "weights that pruning set to zero stay zero")

    distill_weight: float = option(0.5, "share of the teacher's soft targets in the loss", low=0, high=1)
    temperature: float = option(4.0, "softens the outputs of teacher and student", above=0)
    feature_layers: tuple[str, ...] = option((), "layer whose features follow the teacher's, NAME or STUDENT=TEACHER")
    feature_weight: float = option(1.0, "weight of the feature term", low=0)

    sync_batchnorm: bool = option(False, "batch-norm statistics over all processes")
    find_unused_parameters: bool = option(False, "for models that skip parameters in some steps (several processes)")
    seed: int = option(0, "of Python, NumPy, torch and the data workers", low=0)
    deterministic: bool = option(False, "only deterministic algorithms")

    finetune: ClassVar[bool] = False  # whether the model is trained already

    def __post_init__(self) -> None:
        self._set(optimizer=own_name(self.optimizer, OPTIMIZERS), scheduler=own_name(self.scheduler, SCHEDULERS))
        self._set(optimizer_args=dict(self.optimizer_args), scheduler_args=dict(self.scheduler_args))
        self._take_over_arguments()
        check_fields(self, "training")
        if self.nesterov and (self.optimizer not in ("sgd", "muon", AUTO) or self.momentum == 0):
            raise InputError("nesterov needs optimizer 'sgd' and a momentum above 0")
        if self.optimizer_args or self.scheduler_args or self.optimizer in RARE or self.scheduler in RARE:
            from compress.training.schedulers import check_optimizer_and_scheduler  # reads torch's signatures

            check_optimizer_and_scheduler(self)
        if self.warmup_epochs >= self.epochs and self.warmup_epochs > 0:
            raise InputError(f"warmup_epochs {self.warmup_epochs} must be below epochs {self.epochs}")

    def _set(self, **values: Any) -> None:
        """Settle fields of a value that is still being made."""
        assert values.keys() <= {field.name for field in dataclasses.fields(self)}
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _take_over_arguments(self) -> None:
        """Arguments that have a field of their own become that field."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for name in ("lr", "momentum", "nesterov", "weight_decay"):
            if name not in self.optimizer_args:
                continue
            value, own = self.optimizer_args.pop(name), getattr(self, name)  # type: ignore[attr-defined]  # a dict of our own by now
            if own not in (defaults[name], value):
                raise InputError(f"{name} is given twice: {own!r}, and {value!r} in optimizer_args")
            self._set(**{name: value})

    def settled(self, **values: Any) -> TrainOptions:
        """A copy with values that need no check: what `auto` stands for in a run."""
        found = copy.copy(self)
        found._set(**values)
        return found

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain values; a function among the arguments is its name."""
        plain: dict[str, Any] = _plain(dataclasses.asdict(self))
        return plain

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> TrainOptions:
        """Build options from a parsed TOML table; a name with a dash is taken as with an underscore.

        Raises:
            InputError: an unknown name (the nearest is given), or a value out of range.
        """
        names = {field.name: field for field in dataclasses.fields(cls)}
        taken: dict[str, Any] = {}
        for key, value in values.items():
            name = key.replace("-", "_")
            if name not in names:
                raise InputError(f"unknown training option {key!r}; {nearest(name, names)}")
            taken[name] = value
        return cls(**taken)


@dataclass(frozen=True)
class FinetuneOptions(TrainOptions):
    """The same for a trained model: a smaller rate mends it, where that of base training would undo what it knows."""

    finetune: ClassVar[bool] = True


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return getattr(value, "__qualname__", repr(value)) if callable(value) else value
