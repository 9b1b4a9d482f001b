"""Batches put together again, for metrics that are computed on the whole data."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from compress.errors import InputError


class Joined:
    """Outputs and targets of all batches; tensors along the batch, lists end to end."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.outputs: list[tuple[Tensor, ...]] = []
        self.targets: list[Any] = []

    def add(self, outputs: tuple[Tensor, ...], target: Any) -> None:
        self.outputs.append(tuple(value.detach() for value in outputs))
        self.targets.append(target)

    @property
    def samples(self) -> int:
        return sum(len(values[0]) if values[0].dim() else 1 for values in self.outputs)

    def all(self) -> tuple[Any, Any]:
        """(outputs, target) of the whole data, as one batch would give them."""
        columns = tuple(self._join(list(values), "outputs") for values in zip(*self.outputs))
        target = self._join(self.targets, "targets")
        self.outputs, self.targets = [columns], [target]  # put together once, however often it is drawn from
        return columns[0] if len(columns) == 1 else columns, target

    def drawn(self, index: Tensor) -> tuple[Any, Any]:
        """(outputs, target) of the samples of `index`."""
        outputs, target = self.all()
        return _taken(outputs, index), _taken(target, index)

    def _join(self, values: list[Any], what: str) -> Any:
        if len(values) == 1:
            return values[0]
        try:
            return joined(values)
        except (RuntimeError, ValueError, TypeError) as error:
            shapes = sorted({tuple(value.shape) for value in values if isinstance(value, Tensor)})[:3]
            raise InputError(
                f"metric {self.name!r} is called on the whole data, and its {what} cannot be put together "
                f"({', '.join(map(str, shapes)) or type(values[0]).__name__}); mark the function with per_batch = True, "
                "or give a class with update(outputs, target) and compute()"
            ) from error


def joined(values: list[Any]) -> Any:
    """Put together what batches hold, by kind.

    Raises:
        RuntimeError, ValueError, TypeError: the shapes or kinds do not fit.
    """
    first = values[0]
    if first is None:
        return None
    if isinstance(first, Tensor):
        return torch.cat(values) if first.dim() else torch.stack(values)
    if isinstance(first, np.ndarray):
        return np.concatenate(values) if first.ndim else np.stack(values)
    if isinstance(first, dict):
        return {key: joined([value[key] for value in values]) for key in first}
    if isinstance(first, tuple):
        return tuple(joined(list(parts)) for parts in zip(*values, strict=True))
    if isinstance(first, list):
        return [item for value in values for item in value]
    raise TypeError(type(first).__name__)


def _taken(value: Any, index: Tensor) -> Any:
    if value is None:
        return None
    if isinstance(value, Tensor):
        return value[index.to(value.device)]
    if isinstance(value, np.ndarray):
        return value[index.numpy()]
    if isinstance(value, dict):
        return {key: _taken(item, index) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(_taken(item, index) for item in value)
    return [value[i] for i in index.tolist()]
