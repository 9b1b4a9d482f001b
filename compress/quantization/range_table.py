"""The table of range methods. A new one is one file in `ranges/` and one line here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compress.errors import QuantizationError, nearest
from compress.tables import Entry

if TYPE_CHECKING:  # a command's help names the methods, and must not wait for what they load
    from compress.quantization.ranges.observer import RangeMethod

# Frozen options of each method, as `ranges.observer.RangeMethod` describes them.
RANGES: dict[str, Entry] = {
    "minmax": Entry("compress.quantization.ranges.minmax:MinMax", "everything that was seen"),
    "percentile": Entry("compress.quantization.ranges.percentile:Percentile", "all but the rarest values at each end"),
    "entropy": Entry("compress.quantization.ranges.entropy:Entropy", "least Kullback-Leibler divergence (TensorRT's)"),
    "mse": Entry("compress.quantization.ranges.mean_squared_error:MeanSquaredError", "least mean squared error"),
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
    made: RangeMethod = RANGES[ranges].load()()
    return made
