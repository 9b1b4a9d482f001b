"""Range method `mse`: the range whose rounding plus clipping error is smallest.

For a range r the histogram gives the expected error  E(r) = Σ_i n_i · (dq(q(x_i; r)) − x_i)²
over its bin centres x_i. A narrower range rounds more finely and clips more. (The idea is old;
for networks see Banner et al. 2019, "Post training 4-bit quantization of convolutional networks".)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from compress.quantization.ranges.histogram import Histogram
from compress.quantization.ranges.observer import Observer

LEVELS = 255  # steps between the lowest and the highest code


@dataclass(frozen=True)
class MeanSquaredError:
    """Tries `candidates` shrinkings of the whole range, then of each end alone."""

    bins: int = 4096
    candidates: int = 80
    narrowest: float = 0.2  # of what was seen

    def start(self) -> MeanSquaredErrorObserver:
        return MeanSquaredErrorObserver(self)


class MeanSquaredErrorObserver(Observer):
    def __init__(self, options: MeanSquaredError) -> None:
        self.options = options
        self.histogram = Histogram(options.bins)

    def observe(self, values: np.ndarray) -> None:
        self.histogram.add(values)

    def merge(self, other: MeanSquaredErrorObserver) -> None:
        self.histogram.merge(other.histogram)

    def range(self) -> tuple[float, float]:
        seen = self.histogram
        if seen.empty:
            return 0.0, 0.0
        filled = np.flatnonzero(seen.counts)
        values, weights = seen.centers()[filled], seen.counts[filled].astype(np.float64)
        low, high = min(seen.low, 0.0), max(seen.high, 0.0)
        shrink = np.linspace(self.options.narrowest, 1.0, self.options.candidates)
        low, high = _best(values, weights, ((low * s, high * s) for s in shrink), (low, high))
        if low < 0 < high:
            finer = np.linspace(0.6, 1.4, self.options.candidates // 2)
            seen_low, seen_high = seen.low, seen.high
            low, high = _best(values, weights, ((max(low * s, seen_low), high) for s in finer), (low, high))
            low, high = _best(values, weights, ((low, min(high * s, seen_high)) for s in finer), (low, high))
        return low, high


def expected_error(values: np.ndarray, weights: np.ndarray, low: float, high: float) -> float:
    """The summed squared error of 256 levels over [low, high], which holds zero exactly."""
    scale = (high - low) / LEVELS
    if scale <= 0:
        return float(np.sum(weights * values * values))
    zero = np.rint(-low / scale)
    error = (np.clip(np.rint(values / scale) + zero, 0, LEVELS) - zero) * scale - values
    return float(np.dot(weights, error * error))


def _best(
    values: np.ndarray, weights: np.ndarray, ranges: Iterable[tuple[float, float]], fallback: tuple[float, float]
) -> tuple[float, float]:
    best, answer = expected_error(values, weights, *fallback), fallback
    for low, high in ranges:
        error = expected_error(values, weights, low, high)
        if error < best:
            best, answer = error, (low, high)
    return answer
