"""The options of pruning: one frozen dataclass whose field names are the command's and the recipe's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from compress.errors import InputError
from compress.training.options import TrainOptions


def _option(default: Any, text: str, metavar: str | None = None) -> Any:
    return field(default=default, metadata={"help": text, "metavar": metavar, "only_on": True})


@dataclass(frozen=True)
class PruneOptions:
    """How to prune. `--finetune-epochs` on the command line is `finetune_epochs` here and in a recipe.

    `amount` is a fraction of `target`; with `masks`, a fraction of weights or a whole number of them. `finetune_epochs`
    are spread over the steps of the schedule, and `train` says how.
    """

    amount: float = _option(0.5, "fraction to remove")
    target: str = _option("channels", "what --amount is of: channels, macs, parameters, latency, blocks", "NAME")
    method: str = _option("l1", "score; the least go first: l1, l2, random, batchnorm, taylor, fpgm", "NAME")
    scope: str = _option("uniform", "where channels are ranked: uniform (in each layer), global", "NAME")
    round_to: int | None = _option(None, "leave multiples of N channels; default 16, less in narrow layers", "N")
    include: tuple[str, ...] = _option((), "prune these layers only; * allowed")
    exclude: tuple[str, ...] = _option((), "leave this layer whole; * allowed")
    recalibrate: bool = _option(False, "measure batch-norm statistics anew after pruning")
    masks: bool = _option(False, "zero single weights; methods l1, random, ln, random-structured, 2:4")
    n: float = _option(2, "masks: the norm of ln")
    dim: int = _option(0, "masks: 0 output channels, 1 input channels")
    schedule: str = _option("one-shot", "how the amount grows: one-shot, linear, agp", "NAME")
    steps: int = _option(5, "steps of a schedule")
    finetune_epochs: int = _option(0, "train on, spread over the steps", "N")
    distill: bool = _option(False, "fine-tune with the unpruned model as teacher")
    train: TrainOptions = field(default_factory=lambda: TrainOptions(lr=0.01))
    sparse_storage: bool = _option(False, "store mostly-zero weights sparse where that is smaller")

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("finetune_epochs", 0)):
            value = getattr(self, name)
            if value < least:
                raise InputError(f"{name.replace('_', '-')} {value} is too few; give {least} or more")
