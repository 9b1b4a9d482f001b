"""What every range method is: frozen options that start a streaming, mergeable observer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Protocol

import numpy as np


class Observer(ABC):
    """Sees a tensor piece by piece and answers with a range; its size does not grow with what it has seen."""

    @abstractmethod
    def observe(self, values: np.ndarray) -> None:
        """Take in one float array of any shape. Values must be finite; the caller has checked."""

    @abstractmethod
    def merge(self, other: Any) -> None:
        """Take in what `other`, of the same class, has seen (another process, another tensor)."""

    @abstractmethod
    def range(self) -> tuple[float, float]:
        """The (low, high) to be represented; (0, 0) where nothing was seen."""


class RangeMethod(Protocol):
    """Frozen options of one method."""

    def start(self) -> Observer:
        """A fresh observer."""
        ...
