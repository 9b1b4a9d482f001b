"""The loss functions that `--loss` knows, each a mean over the samples of a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn import functional

from compress.errors import InputError, nearest
from compress.training.options import TrainOptions

# (output of the model, target) → scalar, a mean over the samples: the loop weights it by their number.
Loss = Callable[[Any, Any], Tensor]


def cross_entropy(options: TrainOptions) -> Loss:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        return functional.cross_entropy(output, target, label_smoothing=options.label_smoothing)

    return loss


def mean_squared_error(options: TrainOptions) -> Loss:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        # Without the reshape (N, 1) against (N,) would broadcast to (N, N) in silence.
        return functional.mse_loss(output, target.to(output.dtype).reshape(output.shape))

    return loss


LOSSES: dict[str, Callable[[TrainOptions], Loss]] = {"cross_entropy": cross_entropy, "mse": mean_squared_error}


def make_loss(options: TrainOptions) -> Loss:
    """Return the loss that `options` names.

    Raises:
        InputError: the name is unknown, or is `module:function`, which the command resolves before.
    """
    if ":" in options.loss:
        raise InputError(f"loss {options.loss!r} is a function of your own; pass the function itself as fit(loss=…)")
    if options.loss not in LOSSES:
        raise InputError(f"unknown loss {options.loss!r}; {nearest(options.loss, LOSSES)}")
    loss = LOSSES[options.loss](options)

    def of_one_tensor(output: Any, target: Any) -> Tensor:
        if not isinstance(output, Tensor):
            raise InputError(
                f"loss {options.loss!r} takes one tensor, and the model returns {type(output).__name__}; "
                "give a loss of your own (module:function)"
            )
        return loss(output, target)

    return of_one_tensor
