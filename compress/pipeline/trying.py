"""Training tried on one batch when a job begins: `run --dry-run` refuses what the run would refuse after an hour."""

from __future__ import annotations

from torch import nn

from compress.pipeline.inputs import Opened
from compress.training.options import TrainOptions
from compress.training.rehearsal import rehearse


def rehearse_training(
    opened: Opened, module: nn.Module, options: TrainOptions, *, teacher: nn.Module | None = None
) -> None:
    """Try the loss, the teacher and the optimizer of `options` on one batch of the training part.

    Raises:
        CompressError: no training data, or what one batch of training would refuse.
    """
    opened.loader("train")  # says what is missing
    rehearse(module, opened.data, options, teacher=teacher)
