"""Which samples each process sees in each epoch: the same global batches for any number of processes."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import Any

import torch
from torch.utils.data import DistributedSampler, Sampler

from compress.errors import TrainingError


class EpochSampler(DistributedSampler[Any]):
    """PyTorch's DistributedSampler with the same order for one process, and padding that can be recognized.

    The order depends on `seed` and the epoch alone. Process r takes every `world`-th sample from the
    r-th on, so the processes' k-th batches together are the k-th batch of a single process. Where
    the samples do not divide, late processes repeat one sample at the end (all must take part in the last
    all-reduce); `counted` is how many of this process's samples are real.

    Args:
        multiple: leave out what exceeds a multiple of this (drop_last with the global batch size).

    Raises:
        TrainingError: no sample is left.
    """

    def __init__(
        self, data: Sized, *, world: int = 1, rank: int = 0, shuffle: bool = True, seed: int = 0, multiple: int = 1
    ):
        super().__init__(data, num_replicas=world, rank=rank, shuffle=shuffle, seed=seed)  # type: ignore[arg-type]  # torch takes whatever has a length
        self.size = len(data) // multiple * multiple
        if self.size == 0 and multiple > 1:
            raise TrainingError(
                f"drop_last with batch_size {multiple} leaves no batch of {len(data)} training samples; "
                "use a smaller batch_size, or do not drop the last batch"
            )
        if self.size == 0:
            raise TrainingError("the training data is empty")
        self.num_samples = -(-self.size // world)
        self.total_size = self.num_samples * world
        self.counted = len(range(rank, self.size, world))

    def order(self) -> list[int]:
        if not self.shuffle:
            return list(range(self.size))
        generator = torch.Generator()
        generator.manual_seed(self.seed + self.epoch)
        return torch.randperm(len(self.dataset), generator=generator)[: self.size].tolist()  # type: ignore[arg-type]  # a data set with a length

    def __iter__(self) -> Iterator[int]:
        order = self.order()
        while len(order) < self.total_size:
            order += order[: self.total_size - len(order)]
        return iter(order[self.rank : self.total_size : self.num_replicas])


class ShareSampler(Sampler[Any]):
    """Every `world`-th sample from the `rank`-th on, in order and without padding: for evaluation."""

    def __init__(self, data: Sized, *, world: int = 1, rank: int = 0):
        self.indices = range(rank, len(data), world)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)
