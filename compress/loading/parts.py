"""Train, calibration, test: who gets which samples."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.data import Dataset, IterableDataset, Subset

from compress.errors import DataError

TEST_FRACTION = 0.2  # of data that comes in one piece
CALIBRATION_SAMPLES = 512  # ranges settle well before that
CALIBRATION_FRACTION = 0.125  # of the training samples, at most, unless the user asks for more


@dataclass(frozen=True)
class Parts:
    """The parts that a source found, before splitting; `whole` is data that came in one piece."""

    name: str
    train: Dataset[Any] | None = None
    calibration: Dataset[Any] | None = None
    test: Dataset[Any] | None = None
    whole: Dataset[Any] | None = None
    classes: tuple[str, ...] | None = None
    num_classes: int | None = None
    collate: Callable[[list[Any]], Any] | None = None


def complete(parts: Parts, *, calibration_samples: int | None, test_samples: int | None, seed: int) -> Parts:
    """Return `parts` with what is missing drawn from what is there; no sample is in two parts.

    * Data in one piece: a fifth for the test, the rest for training. Likewise training data without a test part.
    * Calibration: the source's own, else drawn from training; without training data, from the test samples that
      `test_samples` left out. Never from the test part.
    * `calibration_samples` and `test_samples` are upper limits; draws follow `seed`.

    Raises:
        DataError: a part is empty, or a limit is not positive.
    """
    for name, count in (("calibration_samples", calibration_samples), ("test_samples", test_samples)):
        if count is not None and count < 1:
            raise DataError(f"{name} {count} must be positive")
    if any(is_stream(getattr(parts, name)) for name in ("whole", "train", "calibration", "test")):
        return _streamed(parts, calibration_samples, test_samples)
    for name in ("whole", "train", "calibration", "test"):
        part = getattr(parts, name)
        if part is not None and size(part) == 0:
            raise DataError(f"{parts.name!r} holds no samples{'' if name == 'whole' else ' in its part ' + repr(name)}")
    parts = _with_test(parts, seed)
    parts, left_out = _limited_test(parts, test_samples, seed)
    return _with_calibration(parts, left_out, calibration_samples, seed)


class Streamed(IterableDataset[Any]):
    """Some samples of a stream, by their number: a part of data of unknown length."""

    def __init__(self, source: Any, chosen: Callable[[int], bool], most: int | None = None) -> None:
        self.source, self.chosen, self.most = source, chosen, most

    def __iter__(self) -> Iterator[Any]:
        numbered = (item for number, item in enumerate(self.source) if self.chosen(number))
        return itertools.islice(numbered, self.most)


def is_stream(part: Any) -> bool:
    """Whether a part can be gone through in order only, its length unknown."""
    return isinstance(part, IterableDataset) and not hasattr(part, "__len__")


def _streamed(parts: Parts, calibration: int | None, test: int | None) -> Parts:
    """The parts of streams: every fifth sample of a single one tests; the first training samples calibrate."""
    if parts.whole is not None:
        fifth = round(1 / TEST_FRACTION)
        tests = Streamed(parts.whole, lambda number: number % fifth == 0, test)
        parts = replace(parts, whole=None, train=Streamed(parts.whole, lambda number: number % fifth != 0), test=tests)
    elif parts.test is not None and test is not None:
        parts = replace(parts, test=Streamed(parts.test, lambda number: True, test))
    if parts.calibration is None and parts.train is not None:
        first = Streamed(parts.train, lambda number: True, calibration or CALIBRATION_SAMPLES)
        parts = replace(parts, calibration=first)
    return parts


def size(part: Dataset[Any]) -> int:
    """Return the number of samples of a map-style data set.

    Raises:
        DataError: it is a stream, or has no length.
    """
    try:
        return len(part)  # type: ignore[arg-type]  # sized: streams are told apart before
    except TypeError as error:
        raise DataError(
            f"a {type(part).__name__} has no length; give a map-style data set (len and [index])"
        ) from error


def draw(count: int, total: int, seed: int) -> tuple[list[int], list[int]]:
    """Return `count` of the indices below `total` in random order, and the others in their own order."""
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed)).tolist()
    return order[:count], sorted(order[count:])


def subset(part: Dataset[Any], indices: Sequence[int]) -> Dataset[Any]:
    """Return some samples of `part`, without stacking one subset on another."""
    if isinstance(part, Subset):
        return Subset(part.dataset, [part.indices[index] for index in indices])
    return Subset(part, list(indices))


def _with_test(parts: Parts, seed: int) -> Parts:
    pool = parts.whole if parts.whole is not None else parts.train if parts.test is None else None
    if pool is None:
        return parts
    total = size(pool)
    chosen, rest = draw(max(1, round(total * TEST_FRACTION)), total, seed)
    if not rest:
        raise DataError(f"{parts.name!r} holds {total} sample; a train and a test part need at least two")
    return replace(parts, whole=None, train=subset(pool, rest), test=subset(pool, sorted(chosen)))


def _limited_test(parts: Parts, limit: int | None, seed: int) -> tuple[Parts, Dataset[Any] | None]:
    if parts.test is None or limit is None or size(parts.test) <= limit:
        return parts, None
    chosen, rest = draw(limit, size(parts.test), seed + 1)
    return replace(parts, test=subset(parts.test, sorted(chosen))), subset(parts.test, rest)


def _with_calibration(parts: Parts, left_out: Dataset[Any] | None, limit: int | None, seed: int) -> Parts:
    if parts.calibration is not None:
        total = size(parts.calibration)
        chosen, _ = draw(min(limit or total, total), total, seed + 2)  # shuffled: the first batches hold all classes
        return replace(parts, calibration=subset(parts.calibration, chosen))
    if parts.train is not None:
        total = size(parts.train)
        most = min(CALIBRATION_SAMPLES, int(total * CALIBRATION_FRACTION)) if limit is None else min(limit, total // 2)
        if total < 2:
            return parts
        chosen, rest = draw(max(1, most), total, seed + 2)
        return replace(parts, calibration=subset(parts.train, chosen), train=subset(parts.train, rest))
    if left_out is not None:
        total = size(left_out)
        chosen, _ = draw(min(limit or CALIBRATION_SAMPLES, total), total, seed + 2)
        return replace(parts, calibration=subset(left_out, chosen))
    return parts
