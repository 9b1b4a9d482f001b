"""A histogram of fixed size that follows a stream of unknown range.

Bin i counts the values in [(offset + i)·w, (offset + i + 1)·w). The width w is a power of two,
so that a wider bin is an exact union of narrower ones: when a value falls outside, w doubles
until everything fits and the counts are added up, without interpolation. The result does not
depend on the order of the stream or on how it was cut, and two histograms merge exactly.
"""

from __future__ import annotations

import math

import numpy as np

CHUNK = 1 << 16  # values counted at a time: the temporaries stay in the cache and memory stays flat
NARROWEST = -120  # exponent of the smallest width; below it float32 reciprocals overflow


class Histogram:
    """Counts of what was seen, between exact extremes `low` and `high`."""

    def __init__(self, bins: int) -> None:
        self.counts = np.zeros(bins, np.int64)
        self.exponent = NARROWEST
        self.offset = 0
        self.low, self.high = math.inf, -math.inf

    @property
    def empty(self) -> bool:
        return self.low > self.high

    @property
    def width(self) -> float:
        return 2.0**self.exponent

    def edges(self) -> np.ndarray:
        """The bins + 1 edges, as float64."""
        return (self.offset + np.arange(len(self.counts) + 1)) * self.width

    def centers(self) -> np.ndarray:
        """The middle of each bin, as float64, inside what was really seen."""
        return np.clip((self.offset + np.arange(len(self.counts)) + 0.5) * self.width, self.low, self.high)

    def add(self, values: np.ndarray) -> None:
        if values.size == 0:
            return
        flat = values.reshape(-1)
        self._cover(float(flat.min()), float(flat.max()))
        origin, inverse = np.float32(self.offset * self.width), np.float32(1 / self.width)
        bins = len(self.counts)
        for start in range(0, flat.size, CHUNK):
            position = (flat[start : start + CHUNK] - origin) * inverse
            np.clip(position, 0, bins - 1, out=position)  # rounding at the outermost edges
            self.counts += np.bincount(position.astype(np.int64), minlength=bins)

    def merge(self, other: Histogram) -> None:
        if other.empty:
            return
        self._cover(other.low, other.high)
        shift = self.exponent - other.exponent
        if shift < 0:  # the other's bins are wider: widen ours to them
            self._widen(other.exponent, min(self.low, 0.0), max(self.high, 0.0))
            shift = 0
        self._place(other.counts, other.offset, shift)

    def _cover(self, low: float, high: float) -> None:
        """Make [low, high] and what was seen before fit."""
        seen_low, seen_high = min(low, self.low), max(high, self.high)
        first = self.empty
        if not first and self._fits(seen_low, seen_high, self.exponent, self.offset):
            self.low, self.high = seen_low, seen_high
            return
        # Zero is always covered: every range will hold it, so nothing finer than a share of that is of use.
        bottom, top = min(seen_low, 0.0), max(seen_high, 0.0)
        exponent = max(NARROWEST, math.ceil(math.log2(max(top - bottom, 2.0**-140) / len(self.counts))))
        if not first:
            exponent = max(exponent, self.exponent)
        self._widen(exponent, bottom, top, first=first)
        self.low, self.high = seen_low, seen_high

    def _fits(self, low: float, high: float, exponent: int, offset: int) -> bool:
        return math.floor(low / 2.0**exponent) >= offset and math.floor(high / 2.0**exponent) < offset + len(
            self.counts
        )

    def _widen(self, exponent: int, low: float, high: float, *, first: bool = False) -> None:
        while math.floor(high / 2.0**exponent) - math.floor(low / 2.0**exponent) >= len(self.counts):
            exponent += 1
        counts, offset, shift = self.counts, self.offset, exponent - self.exponent
        self.exponent, self.offset = exponent, math.floor(low / 2.0**exponent)
        self.counts = np.zeros_like(counts)
        if not first:
            self._place(counts, offset, shift)

    def _place(self, counts: np.ndarray, offset: int, shift: int) -> None:
        filled = np.flatnonzero(counts)
        position = ((filled + offset) >> shift) - self.offset
        np.add.at(self.counts, np.clip(position, 0, len(self.counts) - 1), counts[filled])
