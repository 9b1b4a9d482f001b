"""Batch-norm statistics measured anew, for the activations that a pruned model really has."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from compress.batches import call, read_batch
from compress.errors import PruningError
from compress.state import copied, evaluating


def recalibrate_batchnorm(module: nn.Module, data: Iterable[Any]) -> nn.Module:
    """Return a copy whose batch-norm layers hold the mean statistics of `data`; no weight changes, no labels needed.

    Running means and variances were collected while the removed channels still contributed. This recovers much of
    the accuracy that pruning costs, before any training (Li et al. 2020, EagleEye, section 3.3).

    Raises:
        PruningError: the data is empty.
    """
    twin = copied(module)
    layers = [
        part
        for part in twin.modules()
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.track_running_stats
    ]
    if not layers:
        return twin
    momenta = [part.momentum for part in layers]
    batches = 0
    with evaluating(twin):
        for part in layers:
            part.reset_running_stats()
            part.momentum, part.training = None, True  # None: the plain mean over all batches
        for batch in data:
            call(twin, read_batch(batch))
            batches += 1
    for part, momentum in zip(layers, momenta):
        part.momentum = momentum
    if not batches:
        raise PruningError("batch-norm statistics cannot be measured: the data is empty")
    return twin
