"""Range method `entropy`: the clipping that loses the least information (KL divergence).

S. Migacz, "8-bit Inference with TensorRT", GTC 2017. For a threshold at bin i of a fine histogram c:
    P = c[:i], with everything beyond i added to its last bin        (what clipping makes of the data)
    Q = c[:i] merged into 128 levels, each spread evenly again over its bins that are not empty
and the i with the smallest KL(P ‖ Q) is taken. Needs many more bins than levels: with as many
bins as levels Q equals P at every i without outliers, and the answer is always min-max.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from compress.quantization.ranges.histogram import Histogram
from compress.quantization.ranges.observer import Observer

TINY = 1e-12
SPIKE = 8  # times its neighbours, and the usual bin


@dataclass(frozen=True)
class Entropy:
    """Thresholds are tried every `stride` bins of a histogram of |x| with half of `bins`, or all, filled."""

    bins: int = 4096
    stride: int = 8

    def start(self) -> EntropyObserver:
        return EntropyObserver(self)


class EntropyObserver(Observer):
    def __init__(self, options: Entropy) -> None:
        self.options = options
        self.histogram = Histogram(options.bins)

    def observe(self, values: np.ndarray) -> None:
        self.histogram.add(values)

    def merge(self, other: EntropyObserver) -> None:
        self.histogram.merge(other.histogram)

    def range(self) -> tuple[float, float]:
        seen = self.histogram
        if seen.empty:
            return 0.0, 0.0
        one_sided = seen.low >= 0 or seen.high <= 0
        magnitudes = _magnitudes(seen)
        levels = 256 if one_sided else 128
        threshold = best_threshold(magnitudes, levels, self.options.stride) * seen.width
        return max(seen.low, -threshold), min(seen.high, threshold)


def _magnitudes(seen: Histogram) -> np.ndarray:
    """The histogram of |x| in bins of the same width, starting at zero."""
    index = seen.offset + np.arange(len(seen.counts))
    index = np.where(index >= 0, index, -index - 1)
    filled = np.flatnonzero(seen.counts)
    return np.bincount(index[filled], weights=seen.counts[filled])


def best_threshold(counts: np.ndarray, levels: int, stride: int = 1) -> int:
    """The number of bins of `counts` to keep: `levels` at least, all of them at most."""
    counts = np.asarray(counts, np.float64).copy()
    if len(counts) <= levels:
        return len(counts)
    # Exact zeros (every ReLU makes a spike of them) are represented whatever the threshold; they must not vote.
    counts[0] = counts[1]
    counts = _without_spikes(counts)
    candidates = [*range(levels, len(counts), stride), len(counts)]
    beyond = counts.sum() - np.cumsum(counts)
    divergences = [_divergence(counts[:kept], float(beyond[kept - 1]), levels) for kept in candidates]
    return candidates[int(np.argmin(divergences))]


def _without_spikes(counts: np.ndarray) -> np.ndarray:
    """Lower each bin that towers over its neighbours to the higher of them.

    One value that comes again and again (a picture's even background, behind a bias) fills one bin. Merged into a level it
    is spread over all of that, which looks like a great loss, and the less so the finer the levels: without this the
    smallest threshold of all would win.
    """
    beside = np.maximum(np.r_[0, counts[:-1]], np.r_[counts[1:], 0])
    usual = counts.sum() / max(np.count_nonzero(counts), 1)
    return np.where(counts > SPIKE * np.maximum(beside, usual), beside, counts)


def _divergence(kept: np.ndarray, outliers: float, levels: int) -> float:
    clipped = kept.copy()
    clipped[-1] += outliers
    if clipped.sum() == 0:
        return np.inf
    level = np.arange(len(kept)) * levels // len(kept)
    filled = kept > 0
    totals = np.bincount(level, weights=kept, minlength=levels)
    holders = np.bincount(level, weights=filled, minlength=levels)
    spread = np.where(filled, totals[level] / np.maximum(holders[level], 1), 0.0)
    p = clipped / clipped.sum()
    q = spread / max(spread.sum(), TINY)
    present = p > 0
    return float(np.sum(p[present] * np.log(p[present] / np.maximum(q[present], TINY))))
