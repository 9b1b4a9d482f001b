"""Signal to noise in decibels: the one place where powers become dB."""

from __future__ import annotations

import math

EQUAL_DB = 120.0  # of outputs in a search that are equal to the bit, and the most that it tells apart
MOST = 300.0  # what no noise at all is given; the least is its negative


def decibels(noise: float, signal: float = 1.0) -> float:
    """10 · log₁₀(signal / noise) of two powers, within ±300.

    >>> decibels(0.01), decibels(0.0), decibels(4.0, signal=400.0), decibels(1.0, signal=0.0), decibels(math.nan)
    (20.0, 300.0, 20.0, -300.0, -300.0)
    """
    if noise == 0:
        return MOST
    if signal == 0 or not math.isfinite(noise):  # a result that is not finite is no good one
        return -MOST
    return max(-MOST, min(MOST, 10 * math.log10(signal / noise)))
