"""The optimizers that `--optimizer` knows."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn, optim

from compress.errors import InputError, TrainingError, nearest
from compress.training.options import TrainOptions

Parameters = Iterable[nn.Parameter]

OPTIMIZERS: dict[str, Callable[[Parameters, TrainOptions], optim.Optimizer]] = {
    "sgd": lambda parameters, o: optim.SGD(
        parameters, lr=o.lr, momentum=o.momentum, nesterov=o.nesterov, weight_decay=o.weight_decay
    ),
    "adam": lambda parameters, o: optim.Adam(parameters, lr=o.lr, weight_decay=o.weight_decay),
    "adamw": lambda parameters, o: optim.AdamW(parameters, lr=o.lr, weight_decay=o.weight_decay),
    "rmsprop": lambda parameters, o: optim.RMSprop(
        parameters, lr=o.lr, momentum=o.momentum, weight_decay=o.weight_decay
    ),
}


def make_optimizer(module: nn.Module, options: TrainOptions) -> optim.Optimizer:
    """Return the optimizer that `options` names, over every parameter of `module` that wants a gradient.

    Raises:
        InputError: the name is unknown.
        TrainingError: nothing in `module` can be trained.
    """
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not parameters:
        raise TrainingError(
            "the model has no parameter that wants a gradient; set requires_grad on what is to be trained"
        )
    if options.optimizer not in OPTIMIZERS:
        raise InputError(f"unknown optimizer {options.optimizer!r}; {nearest(options.optimizer, OPTIMIZERS)}")
    return OPTIMIZERS[options.optimizer](parameters, options)


def clip(module: nn.Module, options: TrainOptions) -> None:
    """Clip the gradients by value, then by the norm of all of them together, where asked."""
    if options.clip_value is not None:
        nn.utils.clip_grad_value_(module.parameters(), options.clip_value)
    if options.clip_norm is not None:
        torch.nn.utils.clip_grad_norm_(module.parameters(), options.clip_norm)
