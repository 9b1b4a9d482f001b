"""Range method `percentile`: all but the rarest values at each end."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from compress.errors import QuantizationError
from compress.quantization.ranges.histogram import Histogram
from compress.quantization.ranges.observer import Observer


@dataclass(frozen=True)
class Percentile:
    """Keep `percentile` per cent of the values; what is left over is clipped, half at each end.

    A side on which nothing lies (below zero after a ReLU) gives its half to the other one.
    """

    percentile: float = 99.999
    bins: int = 4096

    def __post_init__(self) -> None:
        if not 50 < self.percentile <= 100:
            raise QuantizationError(f"percentile must be in (50, 100], not {self.percentile}; 99.99 is usual")

    def start(self) -> PercentileObserver:
        return PercentileObserver(self)


class PercentileObserver(Observer):
    def __init__(self, options: Percentile) -> None:
        self.options = options
        self.histogram = Histogram(options.bins)

    def observe(self, values: np.ndarray) -> None:
        self.histogram.add(values)

    def merge(self, other: PercentileObserver) -> None:
        self.histogram.merge(other.histogram)

    def range(self) -> tuple[float, float]:
        seen = self.histogram
        if seen.empty:
            return 0.0, 0.0
        two_sided = seen.low < 0 < seen.high
        tail = (1 - self.options.percentile / 100) / (2 if two_sided else 1)
        reached = np.cumsum(seen.counts) / seen.counts.sum()
        edges = seen.edges()
        # The first bin at whose end more than `tail` lies behind, and the first at whose end all but `tail` does.
        low = edges[int(np.searchsorted(reached, tail, side="right"))] if seen.low < 0 else seen.low
        high = edges[int(np.searchsorted(reached, 1 - tail, side="left")) + 1] if seen.high > 0 else seen.high
        return max(float(low), seen.low), min(float(high), seen.high)
