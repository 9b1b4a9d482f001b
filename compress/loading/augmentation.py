"""Random crops with mirrored images, for training only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import default_collate, get_worker_info

from compress.errors import DataError


@dataclass(frozen=True)
class Augmentation:
    """Pad by `crop_padding` pixels and crop back at a random place; mirror left to right half of the time.

    `Augmentation(crop_padding=4, flip=True)` is the usual recipe for 32×32 photographs; digits must not be flipped.
    Padding is zero *after* normalization, that is, the mean colour.
    """

    crop_padding: int = 0
    flip: bool = False

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return images (N, C, H, W) augmented, each on its own."""
        if images.ndim != 4 or not images.is_floating_point():
            raise DataError(f"augmentation needs float images (N, C, H, W), got {images.dtype} {tuple(images.shape)}")
        if self.crop_padding:
            images = _shifted(images, self.crop_padding, generator)
        if self.flip:
            mirrored = torch.rand(len(images), generator=generator) < 0.5
            images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(-1), images)
        return images


def _shifted(images: Tensor, padding: int, generator: torch.Generator | None) -> Tensor:
    count, channels, height, width = images.shape
    padded = functional.pad(images, [padding] * 4)
    top, left = torch.randint(0, 2 * padding + 1, (2, count, 1), generator=generator)
    rows = (top + torch.arange(height)).view(count, 1, height, 1)
    columns = (left + torch.arange(width)).view(count, 1, 1, width)
    return padded[torch.arange(count).view(-1, 1, 1, 1), torch.arange(channels).view(1, -1, 1, 1), rows, columns]


class AugmentingCollate:
    """Collate a batch, then augment its images, with a random stream of its own in each worker."""

    def __init__(self, augmentation: Augmentation, seed: int, collate: Callable[[list[Any]], Any] = default_collate):
        self.augmentation = augmentation
        self.seed = seed
        self.collate = collate
        self._generator: torch.Generator | None = None

    def __call__(self, samples: list[Any]) -> Any:
        if self._generator is None:
            # A worker's own seed differs from its neighbours' and from epoch to epoch, and follows the loader's.
            worker = get_worker_info()
            self._generator = torch.Generator().manual_seed(self.seed if worker is None else worker.seed)
        batch = self.collate(samples)
        if isinstance(batch, Tensor):
            return self.augmentation(batch, self._generator)
        if isinstance(batch, (list, tuple)) and isinstance(batch[0], Tensor):
            return [self.augmentation(batch[0], self._generator), *batch[1:]]
        raise DataError("augmentation needs batches of (images, target); augment in your own data set instead")
