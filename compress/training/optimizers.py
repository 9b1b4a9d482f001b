"""The optimizers of `torch.optim`, by name, with every argument of theirs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn, optim

from compress.errors import TrainingError
from compress.training.arguments import accepted, call, check_arguments, named
from compress.training.names import OPTIMIZERS

if TYPE_CHECKING:
    from compress.training.options import TrainOptions

FIELDS = ("lr", "weight_decay", "nesterov")  # of `TrainOptions`, handed to every class that takes them
MOMENTUM = ("sgd", "rmsprop", "muon")  # whose `momentum` is the field of that name
# Why an optimizer cannot be used here.
REFUSED = {"sparseadam": "takes sparse gradients alone, and this loop makes dense ones; use adam"}


def optimizer_class(name: str) -> type[optim.Optimizer]:
    """The class of `torch.optim` that an option names.

    Raises:
        InputError: there is none, or it cannot be used; says why.
    """
    found: type[optim.Optimizer] = getattr(optim, named("optimizer", name, OPTIMIZERS, REFUSED))
    return found


def optimizer_arguments(options: TrainOptions, kind: type[optim.Optimizer]) -> dict[str, Any]:
    """What the class is called with: the fields that it takes, then `optimizer_args`, which win."""
    known = accepted(kind)
    fields = {name: getattr(options, name) for name in FIELDS if name in known}
    if fields.get("lr") is None or isinstance(fields.get("lr"), str):
        fields.pop("lr", None)
    if options.optimizer in MOMENTUM:
        fields["momentum"] = options.momentum
    if not options.nesterov:
        fields.pop("nesterov", None)
    return fields | check_arguments(kind, options.optimizer_args)


def build(parameters: Sequence[nn.Parameter], options: TrainOptions) -> optim.Optimizer:
    """Return the optimizer of `options` over `parameters`.

    Raises:
        InputError: an unknown name or argument (the nearest is given), or a value that the class refuses.
    """
    kind = optimizer_class(options.optimizer)
    made: optim.Optimizer = call(kind, list(parameters), **optimizer_arguments(options, kind))
    return made


def make_optimizer(module: nn.Module, options: TrainOptions) -> optim.Optimizer:
    """Return the optimizer that `options` names, over every parameter of `module` that wants a gradient.

    Raises:
        InputError: as `build`.
        TrainingError: nothing in `module` can be trained.
    """
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not parameters:
        raise TrainingError(
            "the model has no parameter that wants a gradient; set requires_grad on what is to be trained"
        )
    return build(parameters, options)


def trial_optimizer(options: TrainOptions) -> optim.Optimizer:
    """The optimizer over one made-up weight: whatever it refuses, it refuses here."""
    return build([nn.Parameter(torch.zeros(2, 2))], options)


def clip(module: nn.Module, options: TrainOptions) -> None:
    """Clip the gradients by value, then by the norm of all of them together, where asked."""
    if options.clip_value is not None:
        nn.utils.clip_grad_value_(module.parameters(), options.clip_value)
    if options.clip_norm is not None:
        torch.nn.utils.clip_grad_norm_(module.parameters(), options.clip_norm)
