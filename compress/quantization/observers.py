"""The range methods by name."""

from __future__ import annotations

from collections.abc import Callable

from compress.errors import QuantizationError, nearest
from compress.quantization.ranges.entropy import Entropy
from compress.quantization.ranges.mean_squared_error import MeanSquaredError
from compress.quantization.ranges.minmax import MinMax
from compress.quantization.ranges.observer import Observer, RangeMethod
from compress.quantization.ranges.percentile import Percentile

__all__ = ["RANGES", "Entropy", "MeanSquaredError", "MinMax", "Observer", "Percentile", "RangeMethod", "resolve_ranges"]

RANGES: dict[str, Callable[[], RangeMethod]] = {
    "minmax": MinMax,
    "percentile": Percentile,
    "entropy": Entropy,
    "mse": MeanSquaredError,
}


def resolve_ranges(ranges: str | RangeMethod) -> RangeMethod:
    """Options from a name, or the options themselves.

    Raises:
        QuantizationError: no such method.
    """
    if not isinstance(ranges, str):
        return ranges
    if ranges not in RANGES:
        raise QuantizationError(f"unknown range method {ranges!r}; {nearest(ranges, RANGES)}")
    return RANGES[ranges]()
