"""Mixup: each image of a batch blended with another one, its label with the other's.

Zhang et al.: mixup, Beyond Empirical Risk Minimization (2018), section 2:
    x = λ · x_i + (1 − λ) · x_j        loss = λ · loss(y_i) + (1 − λ) · loss(y_j)        λ ~ Beta(α, α)
With a teacher, blended images are inputs on which it can be imitated that no data set has to hold (Beyer et al.:
Knowledge distillation: A good teacher is patient and consistent, 2022).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compress.batches import Batch
from compress.errors import TrainingError
from compress.training.losses import Loss


@dataclass(frozen=True)
class Mixed:
    """The targets of a blended batch: `share` of `first`, the rest of `second`."""

    first: Any
    second: Any
    share: float


def mixed(batch: Batch, alpha: float, seed: tuple[int, ...]) -> Batch:
    """Blend a batch in pairs; what is random follows from `seed` alone.

    Raises:
        TrainingError: inputs that are no images or features in float, or a target that is not one tensor.
    """
    target = batch.target
    if not all(value.is_floating_point() for value in batch.values) or not isinstance(target, Tensor):
        raise TrainingError("mixup blends float inputs with one target tensor for each; set mixup to 0 for this data")
    generator = np.random.default_rng(seed)
    share = float(generator.beta(alpha, alpha))
    order = torch.from_numpy(generator.permutation(len(target))).to(target.device)
    blended = batch.map(lambda value: torch.lerp(value[order], value, share) if value.dim() else value)
    return replace(blended, target=Mixed(target, target[order], share))


def on_mixed(loss: Loss) -> Loss:
    """Return `loss` for blended targets too."""

    def blended(output: Any, target: Any) -> Tensor:
        if not isinstance(target, Mixed):
            return loss(output, target)
        return target.share * loss(output, target.first) + (1 - target.share) * loss(output, target.second)

    return blended
