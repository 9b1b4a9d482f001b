"""The batches of a run: opened from data with parts, or taken as a pair of loaders."""

from __future__ import annotations

from collections.abc import Iterable, Sized
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch.utils.data import DataLoader, DistributedSampler

from compress.errors import DataError, InputError, TrainingError
from compress.training.distributed import World
from compress.training.options import TrainOptions
from compress.training.sampling import EpochSampler, ShareSampler


@runtime_checkable
class TrainData(Protocol):
    """What `fit` asks of data: its parts as datasets, and loaders over them."""

    train: Any
    test: Any

    def loader(self, part: str, **options: Any) -> Iterable[Any]: ...


@dataclass(frozen=True)
class Batches:
    """Loaders of this process; `sampler` is set where the order is ours."""

    train: Any
    evaluation: Any | None
    sampler: EpochSampler | None
    steps: int | None  # optimizer steps per epoch; None where the loader does not tell its length

    def begin(self, epoch: int) -> None:
        """Give every epoch its own order."""
        sampler = self.sampler or getattr(self.train, "sampler", None)
        if isinstance(sampler, DistributedSampler):
            sampler.set_epoch(epoch)

    @property
    def generator(self) -> Any | None:
        return getattr(self.train, "generator", None)


def open_batches(data: Any, options: TrainOptions, world: World) -> Batches:
    """Return the loaders of this process for `data`: a `TrainData`, or a pair (training, evaluation or None).

    Raises:
        InputError: a batch size that does not divide among processes and accumulation.
        DataError: no training part.
        TrainingError: no batch is left, or loaders that several processes would read in full.
    """
    if isinstance(data, TrainData):
        return _from_data(data, options, world)
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
    count = len(train) if isinstance(train, Sized) else None
    if count == 0:
        dropping = isinstance(train, DataLoader) and train.drop_last
        reason = "its batch is larger than the data and drop_last is set" if dropping else "it is empty"
        raise TrainingError(f"the training loader gives no batch: {reason}")
    own = sampler if isinstance(sampler, EpochSampler) else None
    return Batches(train, evaluation, own, -(-count // options.accumulate) if count else None)


def _from_data(data: TrainData, options: TrainOptions, world: World) -> Batches:
    share = world.size * options.accumulate
    if options.batch_size % share:
        raise InputError(
            f"batch_size {options.batch_size} cannot be split over {world.size} processes × {options.accumulate} "
            f"accumulated batches; use a multiple of {share}"
        )
    if data.train is None:
        raise DataError("the data has no training part; give data with a train folder, or x_train and y_train")
    sampler = EpochSampler(
        data.train,
        world=world.size,
        rank=world.rank,
        shuffle=options.shuffle,
        seed=options.seed,
        multiple=options.batch_size if options.drop_last else 1,
    )
    size = options.batch_size // share
    common: dict[str, Any] = {"workers": options.workers, "pin_memory": options.pin_memory}
    seed = options.seed + 1000 * world.rank  # of random transforms: they must differ between processes
    train = data.loader("train", batch_size=size, sampler=sampler, seed=seed, **common)
    part = getattr(data, options.evaluate_on, None)
    evaluation = None
    if part is not None and len(part):
        shared = ShareSampler(part, world=world.size, rank=world.rank)
        evaluation = data.loader(options.evaluate_on, batch_size=size, sampler=shared, **common)
    return Batches(train, evaluation, sampler, -(-sampler.size // options.batch_size))
