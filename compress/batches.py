"""What a batch is: the one reading of it that every stage shares."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from compress.errors import DataError


def split_batch(batch: Any) -> tuple[tuple[Tensor, ...], Any]:
    """Split what a DataLoader yields into (inputs, target).

    Accepts a tensor `x`; `(x, y)`; `((x1, x2), y)`; or a mapping, whose key `labels`, `label`
    or `target` is the target and whose other values are the inputs, in order. `y` is None
    where there is no target. Arrays become tensors. Every input has the batch first.

    Raises:
        DataError: the batch is none of these.
    """
    if isinstance(batch, Mapping):
        target = next((batch[key] for key in ("labels", "label", "target") if key in batch), None)
        values = tuple(value for key, value in batch.items() if key not in ("labels", "label", "target"))
        return _tensors(values), target
    if isinstance(batch, (tuple, list)):
        if len(batch) == 2:
            return _tensors(batch[0]), batch[1]
        if len(batch) == 1:
            return _tensors(batch[0]), None
        raise DataError(
            f"a batch of {len(batch)} items cannot be read; yield (inputs, target), with inputs a tensor or a tuple of them"
        )
    return _tensors(batch), None


def reiterable(batches: Iterable[Any]) -> Iterable[Any]:
    """The same, as a list where it could be gone through only once."""
    return list(batches) if isinstance(batches, Iterator) else batches


def first_batches(batches: Iterable[Any], samples: int) -> Iterator[Any]:
    """The first batches, whole, until there are `samples` samples."""
    seen = 0
    for batch in batches:
        yield batch
        seen += len(split_batch(batch)[0][0])
        if seen >= samples:
            return


def _tensors(value: Any) -> tuple[Tensor, ...]:
    values = value if isinstance(value, (tuple, list)) else (value,)
    return tuple(item if isinstance(item, Tensor) else torch.as_tensor(item) for item in values)
