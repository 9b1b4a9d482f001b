"""The batches of a run: opened from data with parts, or taken as a pair of loaders."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from compress.batches import Batch, is_mapping, known_length
from compress.errors import DataError, InputError, TrainingError
from compress.given import is_list_of_batches, is_pair_of_loaders
from compress.loading.data import open_data
from compress.training.distributed import World
from compress.training.options import TrainOptions
from compress.training.sampling import EpochSampler, ShareSampler


@runtime_checkable
class TrainData(Protocol):
    """What `fit` asks of data: its parts as datasets, and loaders over them."""

    train: Any
    test: Any

    def loader(
        self,
        part: str,
        *,
        batch_size: int = ...,
        sampler: Any = ...,
        seed: int = ...,
        workers: int = ...,
        pin_memory: bool = ...,
        augment: Mapping[str, Any] | None = ...,
    ) -> Iterable[Any]: ...


@dataclass(frozen=True)
class Batches:
    """Loaders of this process; `sampler` is set where the order is ours."""

    open: Callable[[int], Any]  # the training batches of an epoch
    evaluation: Any | None
    sampler: EpochSampler | None
    steps: int | None  # optimizer steps per epoch; None where the loader does not tell its length
    generator: Any | None = None  # the random state of a loader that is not ours
    classes: int | None = None  # as the data declares them


def as_train_data(data: Any) -> Any:
    """Data with parts, or a pair of loaders, of whatever holds samples: a list of batches has no evaluation part."""
    if isinstance(data, TrainData) or is_pair_of_loaders(data):
        return data
    if is_list_of_batches(data):
        return data, None
    arrays = isinstance(data, tuple) and len(data) == 2 and all(isinstance(item, (Tensor, np.ndarray)) for item in data)
    if arrays or isinstance(data, (str, Path, Dataset, Tensor, np.ndarray, Batch)) or is_mapping(data):
        return open_data(data)
    return data


def open_batches(data: Any, options: TrainOptions, world: World) -> Batches:
    """Return the loaders of this process for `data`: a `TrainData`, or a pair (training, evaluation or None).

    Raises:
        InputError: a batch size that does not divide among processes and accumulation.
        DataError: no training part.
        TrainingError: no batch is left, or loaders that several processes would read in full.
    """
    if isinstance(data, TrainData):
        return _from_data(data, options, world)
    if options.crop_padding or options.flip:
        raise InputError("crop_padding and flip are for data with parts; augment in the loader's own data set instead")
    train, evaluation = data if isinstance(data, (tuple, list)) and len(data) == 2 else (data, None)
    if not isinstance(train, Iterable):
        raise DataError(
            f"training data must have .loader(part, …), or be a loader or a pair of them; got {type(train).__name__}"
        )
    sampler = getattr(train, "sampler", None)
    if world.size > 1 and not isinstance(sampler, DistributedSampler):
        raise TrainingError(
            f"{world.size} processes would each read the whole training loader; give it a DistributedSampler, or pass data with parts"
        )
    count = known_length(train)
    if count == 0:
        dropping = isinstance(train, DataLoader) and train.drop_last
        reason = "its batch is larger than the data and drop_last is set" if dropping else "it is empty"
        raise TrainingError(f"the training loader gives no batch: {reason}")
    steps = -(-count // options.accumulate) if count else None
    own = sampler if isinstance(sampler, EpochSampler) else None
    return Batches(functools.partial(_next_epoch, train), evaluation, own, steps, getattr(train, "generator", None))


def _next_epoch(loader: Any, epoch: int) -> Any:
    sampler = getattr(loader, "sampler", None)
    if isinstance(sampler, DistributedSampler):
        sampler.set_epoch(epoch)
    return loader


def share_of_batch(options: TrainOptions, processes: int) -> int:
    """Return how many samples one forward pass of one process takes.

    Raises:
        InputError: the batch does not divide.
    """
    parts = processes * options.accumulate
    if options.batch_size % parts:
        raise InputError(
            f"batch_size {options.batch_size} cannot be split over {processes} processes × {options.accumulate} "
            f"accumulated batches; use a multiple of {parts}"
        )
    return options.batch_size // parts


def _from_stream(data: TrainData, options: TrainOptions, world: World, size: int) -> Batches:
    """Loaders of a stream: its own order, its length unknown, one process."""
    if world.size > 1:
        raise TrainingError(
            f"{world.size} processes would each read the whole stream; train in one, or give data with a length"
        )
    part = getattr(data, options.evaluate_on, None)
    evaluation = None if part is None else data.loader(options.evaluate_on, batch_size=size)
    classes = getattr(data, "num_classes", None)
    return Batches(lambda epoch: data.loader("train", batch_size=size), evaluation, None, None, classes=classes)


def _from_data(data: TrainData, options: TrainOptions, world: World) -> Batches:
    size = share_of_batch(options, world.size)
    if data.train is None:
        raise DataError("the data has no training part; give data with a train folder, or x_train and y_train")
    if not hasattr(data.train, "__len__"):
        return _from_stream(data, options, world, size)
    sampler = EpochSampler(
        data.train,
        world=world.size,
        rank=world.rank,
        shuffle=options.shuffle,
        seed=options.seed,
        multiple=options.batch_size if options.drop_last else 1,
    )
    common: dict[str, Any] = {"workers": options.workers, "pin_memory": options.pin_memory}

    augment: dict[str, Any] = {}
    if options.crop_padding or options.flip:
        augment["augment"] = {"crop_padding": options.crop_padding, "flip": options.flip}

    def open_epoch(epoch: int) -> Any:
        """A loader of its own for every epoch: what is random in it follows from seed, epoch, rank, nothing before."""
        sampler.set_epoch(epoch)
        seed = int(np.random.SeedSequence([options.seed, epoch, world.rank]).generate_state(1)[0])
        return data.loader("train", batch_size=size, sampler=sampler, seed=seed, **common, **augment)

    part = getattr(data, options.evaluate_on, None)
    evaluation = None
    if part is not None and len(part):
        shared = ShareSampler(part, world=world.size, rank=world.rank)
        evaluation = data.loader(options.evaluate_on, batch_size=size, sampler=shared, **common)
    steps = -(-sampler.size // options.batch_size)
    return Batches(open_epoch, evaluation, sampler, steps, classes=getattr(data, "num_classes", None))
