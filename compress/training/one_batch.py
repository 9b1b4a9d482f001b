"""Training tried on one small batch before any work: the loss, the teacher, the optimizer refuse here, not hours later."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import torch
from torch import nn

from compress.errors import CompressError, InputError, first_line
from compress.state import as_in_training, evaluating
from compress.training.criterion import MODEL, make_criterion
from compress.training.defaults import settled
from compress.training.distillation import Objective, distilled
from compress.training.epoch import check_targets, guarded, read
from compress.training.loaders import TrainData
from compress.training.losses import Loss
from compress.training.optimizers import make_optimizer
from compress.training.options import AUTO, TrainOptions
from compress.training.seeds import random_states, restore_random_states

SAMPLES = 8


def rehearse(
    module: nn.Module, data: Any, options: TrainOptions, *, teacher: nn.Module | None = None, loss: Loss | None = None
) -> None:
    """Work the objective out once, in eval mode and without gradients; nothing is trained, random states are given back.

    Raises:
        CompressError: whatever a run of these options would refuse on its first batch, in one line.
    """
    options, _ = settled(options, module)
    criterion = make_criterion(options, loss)
    make_optimizer(module, options.settled(lr=1e-3) if options.lr == AUTO else options)
    device = next((value.device for value in module.parameters()), torch.device("cpu"))
    states = random_states(device)
    try:
        batch = read(_first(data, options), criterion, device)
        check = functools.partial(check_targets, criterion, batch.target, getattr(data, "num_classes", None))
        with contextlib.ExitStack() as stack:
            objective: Objective = criterion
            if teacher is not None:
                objective = stack.enter_context(distilled(module, teacher, criterion, options))
            stack.enter_context(evaluating(module))
            try:
                guarded(objective, module, batch, batch.target, check)
            except Exception:
                if criterion.form != MODEL:
                    raise
                as_in_training(module)  # detectors give their losses so only
                guarded(objective, module, batch, batch.target, check)
    except CompressError:
        raise
    except Exception as error:  # the user's own loss may raise anything
        raise InputError(f"loss {criterion.name} fails on one batch: {first_line(error)}") from error
    finally:
        restore_random_states(states, device)


def _first(data: Any, options: TrainOptions) -> Any:
    """One batch of the training data; small, where we make the loader."""
    if isinstance(data, TrainData):
        if data.train is None:
            raise InputError("the data has no training part; give data with a train folder, or x_train and y_train")
        loader: Any = data.loader("train", batch_size=min(SAMPLES, options.batch_size))
    else:
        loader = data[0] if isinstance(data, (tuple, list)) and len(data) == 2 else data
    return next(iter(loader))
