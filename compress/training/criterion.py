"""What is minimized, and how it is called: on outputs and targets, on the whole batch, or inside the model.

A function of your own is called by what its parameters are named:

    loss(outputs, target)     the usual form, whatever the two are called
    loss(outputs, batch)      the whole batch as the loader gave it, for detectors
    loss(model, batch)        runs the model itself; returns the loss alone

An attribute says the same where names cannot: `loss.takes = "model, batch"`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from compress.batches import TARGETS, Batch, call
from compress.errors import InputError, TrainingError, nearest
from compress.loading.callables import import_callable
from compress.training.loss_table import LOSSES, OWN
from compress.training.losses import Loss, refusal
from compress.training.main_output import find_tensor, named_outputs, one_tensor
from compress.training.options import TrainOptions

PLAIN, BATCH, MODEL = "outputs, target", "outputs, batch", "model, batch"
FORMS = (PLAIN, BATCH, MODEL)


@dataclass(frozen=True)
class Fed:
    """A batch on its way into the model: as the loader gave it, and read (None for a loss that reads it itself)."""

    raw: Any
    batch: Batch | None
    count: int  # samples that count

    @property
    def target(self) -> Any:
        return None if self.batch is None else self.batch.target

    @property
    def read(self) -> Batch:
        assert self.batch is not None
        return self.batch


@dataclass(frozen=True)
class Criterion:
    """A loss with its name and the form in which it is called."""

    name: str
    function: Loss
    form: str = PLAIN

    @property
    def own_loss(self) -> bool:
        return self.name == OWN

    @property
    def built_in(self) -> bool:
        return self.name in LOSSES

    def __call__(self, module: nn.Module, fed: Fed) -> tuple[Any, Tensor]:
        """Run `module` on a batch; return its outputs and the loss."""
        if self.form == MODEL:
            return None, self.function(module, fed.raw)
        if self.own_loss:
            positional, named = fed.read.arguments(module)
            output = module(*positional, **{**named, labels_name(module): fed.target})
            return output, own_loss_of(output)
        output = call(module, fed.read)
        return output, self.of(output, fed)

    def of(self, output: Any, fed: Fed) -> Tensor:
        """The loss of outputs that are there already."""
        if self.form == BATCH:
            return self.function(output, fed.raw)
        if self.built_in and fed.target is None:
            raise TrainingError(f"loss {self.name} needs targets, and the batch has none; yield (inputs, target)")
        return self.function(one_tensor(output) if self.built_in else output, fed.target)

    def check(self, output: Any, target: Any) -> None:
        """Refuse targets that a built-in loss cannot mean.

        Raises:
            TrainingError: says which loss fits.
        """
        reason = refusal(self.name, find_tensor(output), target)
        if reason:
            raise TrainingError(f"loss {self.name} {reason}")


def make_criterion(options: TrainOptions, loss: Loss | None = None) -> Criterion:
    """Return the criterion of a function of the user's own, else of the name in `options`.

    Raises:
        InputError: the name is unknown, `module:function` cannot be imported, or it is no loss.
    """
    if loss is not None:
        made = loss() if isinstance(loss, type) else loss  # torch.nn:SmoothL1Loss
        name = getattr(loss, "__name__", type(loss).__name__)
        return Criterion(options.loss if ":" in options.loss else f"your {name}", made, form_of(made))
    if ":" in options.loss:
        return make_criterion(options, import_callable(options.loss))
    if options.loss not in LOSSES:
        raise InputError(f"unknown loss {options.loss!r}; {nearest(options.loss, LOSSES)}")
    return Criterion(options.loss, LOSSES[options.loss].load()(options))


def form_of(function: Any) -> str:
    """Which of `FORMS` a loss is called in (rules at the top).

    Raises:
        InputError: it is no function of two arguments.
    """
    if (declared := getattr(function, "takes", None)) is not None:
        if declared not in FORMS:
            raise InputError(f"the loss says that it takes {declared!r}; known: {'; '.join(FORMS)}")
        return str(declared)
    if not callable(function):
        raise InputError(f"a loss is a function (outputs, target) -> tensor, got {type(function).__name__}")
    target = function.forward if isinstance(function, nn.Module) else function
    try:
        names = [
            parameter.name
            for parameter in inspect.signature(target).parameters.values()
            if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        ]
    except (TypeError, ValueError):  # built in C: it does not tell
        return PLAIN
    if names[1:2] != ["batch"]:
        return PLAIN
    return MODEL if names[0] in ("model", "module", "network") else BATCH


def with_mixed_targets(criterion: Criterion, wrap: Callable[[Loss], Loss]) -> Criterion:
    """The same for blended targets.

    Raises:
        TrainingError: the loss is not of outputs and targets.
    """
    if criterion.form != PLAIN or criterion.own_loss:
        raise TrainingError("mixup blends targets, and this loss reads them itself; set mixup to 0")
    return replace(criterion, function=wrap(criterion.function))


def labels_name(module: Any) -> str:
    """What forward calls the targets.

    Raises:
        TrainingError: it takes none.
    """
    inner = getattr(module, "module", module)
    names = list(inspect.signature(inner.forward).parameters)
    for name in TARGETS:
        if name in names:
            return name
    raise TrainingError(
        f"loss model needs a model whose forward takes labels; that of {type(inner).__name__} takes {', '.join(names)}"
    )


def own_loss_of(output: Any) -> Tensor:
    """The loss that the model worked out.

    Raises:
        TrainingError: its output has none.
    """
    found = named_outputs(output)
    loss = found.get("loss", getattr(output, "loss", None))
    if not isinstance(loss, Tensor):
        content = ", ".join(found) or type(output).__name__
        raise TrainingError(f"loss model needs an output with a loss, and the model returns {content}")
    return loss
