"""The options of a training run: one frozen dataclass whose field names are the command's and the recipe's."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compress.errors import InputError, nearest
from compress.options import check_fields, choice, option

OPTIMIZERS = ("sgd", "adam", "adamw", "rmsprop")
SCHEDULERS = ("none", "step", "plateau", "cosine")
LOSSES = ("cross_entropy", "mse")
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

    loss: str = choice("cross_entropy", "what is minimized: cross_entropy, mse or module:function", LOSSES, or_own=True)
    label_smoothing: float = option(0.0, "share of the target spread over all classes", low=0, high=1)
    optimizer: str = choice("sgd", "how gradients become steps", OPTIMIZERS)
    lr: float = option(0.05, "learning rate", above=0)
    momentum: float = option(0.9, "of sgd and rmsprop", low=0, high=1)
    nesterov: bool = option(False, "Nesterov momentum (sgd)")
    weight_decay: float = option(0.0, "L2 penalty (decoupled with adamw)", low=0)
    scheduler: str = choice("cosine", "how the learning rate falls", SCHEDULERS)
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
    monitor: str = choice("auto", "what decides the best epoch; auto: top1 with cross_entropy, else loss", MONITORS)
    patience: int | None = option(None, "stop after so many epochs without improvement; keep the best", low=1)
    min_delta: float = option(0.0, "smallest change that counts as improvement", low=0)
    checkpoint_every: int = option(1, "epochs between two checkpoints", low=1)

    distill_weight: float = option(0.5, "share of the teacher's soft targets in the loss", low=0, high=1)
    temperature: float = option(4.0, "softens the outputs of teacher and student", above=0)
    feature_layers: tuple[str, ...] = option((), "layer whose features follow the teacher's, NAME or STUDENT=TEACHER")
    feature_weight: float = option(1.0, "weight of the feature term", low=0)

    sync_batchnorm: bool = option(False, "batch-norm statistics over all processes")
    find_unused_parameters: bool = option(False, "for models that skip parameters in some steps (several processes)")
    seed: int = option(0, "of Python, NumPy, torch and the data workers", low=0)
    deterministic: bool = option(False, "only deterministic algorithms")

    def __post_init__(self) -> None:
        check_fields(self, "training")
        if self.nesterov and (self.optimizer != "sgd" or self.momentum == 0):
            raise InputError("nesterov needs optimizer 'sgd' and a momentum above 0")
        if self.warmup_epochs >= self.epochs and self.warmup_epochs > 0:
            raise InputError(f"warmup_epochs {self.warmup_epochs} must be below epochs {self.epochs}")

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

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

    lr: float = option(0.01, "learning rate", above=0)
