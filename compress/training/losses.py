"""The loss functions that `--loss` knows, each a mean over the samples of a batch, and the targets that each takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from compress.training.loss_table import LOSSES
from compress.training.options import TrainOptions

# (output of the model, target) → scalar, a mean over the samples: the loop weights it by their number.
Loss = Callable[..., Tensor]
SUM_OF_SHARES = 1e-3  # how far from 1 the shares of the classes may add up


def cross_entropy(options: TrainOptions) -> Loss:
    return lambda output, target: functional.cross_entropy(output, target, label_smoothing=options.label_smoothing)


def binary_cross_entropy(options: TrainOptions) -> Loss:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        wanted = target.to(output.dtype).reshape(output.shape)
        smoothed = wanted * (1 - options.label_smoothing) + options.label_smoothing / 2
        return functional.binary_cross_entropy_with_logits(output, smoothed)

    return loss


def _of_numbers(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[TrainOptions], Loss]:
    # Without the reshape (N, 1) against (N,) would broadcast to (N, N) in silence.
    return lambda options: lambda output, target: function(output, target.to(output.dtype).reshape(output.shape))


def not_classes(output: Tensor, target: Tensor) -> str:
    """Why cross entropy does not take these; "" where it does."""
    if target.is_floating_point():
        if _are_shares(output, target):
            return ""
        binary = bool(((target == 0) | (target == 1)).all())
        return (
            f"takes class numbers and the targets are floats {_shape(target)}; give loss {'bce' if binary else 'mse'}"
        )
    if output.dim() == 1 or output.shape[1] == 1:
        return f"takes a score for each class and the model gives one number {_shape(output)}; give loss bce"
    if target.dtype == torch.bool or (target.shape == output.shape and output.dim() > 1):
        return f"takes class numbers and the targets are a yes or no for each class {_shape(target)}; give loss bce"
    return ""


def _are_shares(output: Tensor, target: Tensor) -> bool:
    """Whether float targets say how much of each class a sample is: soft labels."""
    if target.shape != output.shape or output.dim() < 2 or output.shape[1] < 2:
        return False
    return bool((target >= 0).all()) and bool(((target.sum(1) - 1).abs() < SUM_OF_SHARES).all())


def not_binary(output: Tensor, target: Tensor) -> str:
    """Why binary cross-entropy does not take these; "" where it does."""
    if target.numel() != output.numel():
        advice = "; give loss cross_entropy" if output.dim() > 1 and not target.is_floating_point() else ""
        return (
            f"takes a target for each output and the model gives {_shape(output)} for targets {_shape(target)}{advice}"
        )
    low, high = float(target.min()), float(target.max())
    if low < 0 or high > 1:
        return f"takes targets from 0 to 1 and there is {low if low < 0 else high:g}; give loss cross_entropy or mse"
    return ""


def not_numbers(output: Tensor, target: Tensor) -> str:
    """Why a loss of numbers does not take these; "" where it does."""
    if target.numel() != output.numel():
        classes = not target.is_floating_point() and output.dim() == target.dim() + 1
        advice = "; give loss cross_entropy" if classes else ""
        return (
            f"takes a target for each output and the model gives {_shape(output)} for targets {_shape(target)}{advice}"
        )
    return ""


def _shape(value: Tensor) -> str:
    return f"of shape {tuple(value.shape)}"


squared_error = _of_numbers(functional.mse_loss)
absolute_error = _of_numbers(functional.l1_loss)
huber = _of_numbers(functional.huber_loss)


def of_the_model(options: TrainOptions) -> Loss:
    """The output that the model's own loss stands in."""
    return lambda output, target: output


def refusal(name: str, output: Any, target: Any) -> str:
    """Why the loss `name` does not take this output with this target; "" where it does, or where it is the user's own."""
    if name not in LOSSES or not isinstance(output, Tensor) or not isinstance(target, Tensor) or not target.numel():
        return ""
    return LOSSES[name].refusal(output, target)
