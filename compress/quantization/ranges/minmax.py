"""Range method `minmax`: everything that was seen."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from compress.quantization.ranges.observer import Observer


@dataclass(frozen=True)
class MinMax:
    """The smallest and the largest value seen. Nothing is clipped; one outlier costs everybody resolution."""

    def start(self) -> MinMaxObserver:
        return MinMaxObserver()


class MinMaxObserver(Observer):
    def __init__(self) -> None:
        self.low, self.high = math.inf, -math.inf

    def observe(self, values: np.ndarray) -> None:
        if values.size:
            self.low = min(self.low, float(values.min()))
            self.high = max(self.high, float(values.max()))

    def merge(self, other: MinMaxObserver) -> None:
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)

    def range(self) -> tuple[float, float]:
        return (self.low, self.high) if self.low <= self.high else (0.0, 0.0)
