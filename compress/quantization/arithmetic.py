"""The arithmetic of affine quantization, as ONNX defines it.

q(x)  = clip(round(x / s) + z, qmin, qmax)          round: to nearest, ties to even
dq(q) = (q − z) · s                                 so |dq(q(x)) − x| ≤ s/2 inside the range

Activations: the range is widened to hold 0, so that padding and ReLU are exact,
    s = (high − low) / (qmax − qmin)                z = round(qmin − low / s)
Weights: symmetric, z = 0, one s for each output channel,
    s = max|w| / limit
Biases are added to the accumulator of  Σ (qx − zx) · qw,  whose unit is  s_x · s_w:
    qb = round(b / (s_x · s_w)),                    an int32
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Below these a product of two scales leaves float32's normal range, and x / s overflows.
SMALLEST_SCALE = 2.0**-60
LARGEST_BIAS_CODE = 2.0**30  # one bit of int32 is left for the accumulator itself

LEAST_CODE = 64  # that the largest weight of a layer must reach: below, the smallest scale rounds most of them to 0

CODES = {"uint8": (0, 255), "int8": (-128, 127)}


@dataclass(frozen=True)
class Grid:
    """Scale and zero point of one tensor, with the 8-bit type of its codes. Compared by value."""

    scale: float
    zero_point: int
    dtype: str = "uint8"

    @property
    def low(self) -> float:
        return (CODES[self.dtype][0] - self.zero_point) * self.scale

    @property
    def high(self) -> float:
        return (CODES[self.dtype][1] - self.zero_point) * self.scale


def too_small(weight: np.ndarray) -> str:
    """Why weights are too small for any scale, whose codes would all be about 0; empty where they are not, or are 0."""
    largest = max(float(weight.max(initial=0)), -float(weight.min(initial=0)))  # no copy of a large weight
    if largest == 0 or largest >= LEAST_CODE * SMALLEST_SCALE:
        return ""
    return f"its weights, {largest:.1e} at most, are too small for the scale of an int8 kernel ({SMALLEST_SCALE:.1e} at least)"


def grid_for_range(low: float, high: float, *, signed: bool = False) -> Grid:
    """The grid over [low, high] and 0.

    A tensor that is always 0 (the first state of a recurrent layer) has the grid of [0, 1]: any scale holds it exactly, and
    a tiny one would make the bias behind it huge, for which shared weights would lose all their steps.
    """
    dtype = "int8" if signed else "uint8"
    qmin, qmax = CODES[dtype]
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    high = 1.0 if low == high == 0 else high
    scale = float(np.float32(max((high - low) / (qmax - qmin), SMALLEST_SCALE)))
    zero_point = int(np.clip(np.rint(qmin - low / scale), qmin, qmax))
    return Grid(scale, zero_point, dtype)


def symmetric_grid(low: float, high: float) -> Grid:
    """The int8 grid with zero point 0 over [−m, m], m the larger of |low| and |high|; codes −127 … 127 hold it."""
    largest = max(abs(float(low)), abs(float(high))) or 1.0
    return Grid(float(np.float32(max(largest / 127, SMALLEST_SCALE))), 0, "int8")


def symmetric_scales(weight: np.ndarray, axis: int | None, limit: int) -> np.ndarray:
    """One scale for each index along `axis` (a 0-d array where it is None): max|w| / limit, as float32."""
    weight = np.asarray(weight, np.float32)
    axes = None if axis is None else tuple(i for i in range(weight.ndim) if i != axis % weight.ndim)
    largest = np.abs(weight).max(axis=axes) if weight.size else np.float32(0)
    return np.maximum(largest / np.float32(limit), np.float32(SMALLEST_SCALE)).astype(np.float32)


def scales_of_least_error(weight: np.ndarray, axis: int | None, limit: int) -> np.ndarray:
    """As `symmetric_scales`, each shrunk to where rounding plus clipping makes the least squared error.

    Below eight bits the largest weight of a channel is worth clipping: it would cost all others their precision.
    """
    weight = np.asarray(weight, np.float32)
    rows = weight.reshape(1, -1) if axis is None else np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
    widest = symmetric_scales(rows, 0, limit)
    best, least = widest.copy(), np.full(len(rows), np.inf)
    for share in np.linspace(1.0, 0.4, 25, dtype=np.float32):
        scale = np.maximum(share * widest, np.float32(SMALLEST_SCALE))[:, None]
        error = np.square(np.clip(np.rint(rows / scale), -limit, limit) * scale - rows).sum(1)
        best, least = np.where(error < least, scale[:, 0], best), np.minimum(error, least)
    return best.astype(np.float32) if axis is not None else best.reshape(()).astype(np.float32)


def scales_that_hold_bias(scales: np.ndarray, bias: np.ndarray, input_scale: float) -> np.ndarray:
    """Weight scales, raised where |b| / (s_x · s_w) would overflow an int32 (a dead or pruned channel)."""
    needed = np.abs(bias.astype(np.float64)) / (input_scale * LARGEST_BIAS_CODE)
    return np.maximum(scales, needed).astype(np.float32)


def quantize(
    values: np.ndarray,
    scale: np.ndarray | float,
    zero_point: int = 0,
    *,
    low: int,
    high: int,
    dtype: str,
    axis: int | None = None,
) -> np.ndarray:
    """Codes of `values`: q(x) above, with the codes limited to low … high."""
    scale = _along(np.asarray(scale, np.float32), values.ndim, axis)
    codes = np.rint(np.asarray(values, np.float32) / scale) + zero_point
    return np.clip(codes, low, high).astype(dtype)


def quantize_to(values: np.ndarray, grid: Grid) -> np.ndarray:
    """Codes of an activation."""
    low, high = CODES[grid.dtype]
    return quantize(values, grid.scale, grid.zero_point, low=low, high=high, dtype=grid.dtype)


def dequantize(
    codes: np.ndarray, scale: np.ndarray | float, zero_point: int = 0, *, axis: int | None = None
) -> np.ndarray:
    """Values of `codes`: dq(q) above, as float32."""
    scale = _along(np.asarray(scale, np.float32), codes.ndim, axis)
    return (codes.astype(np.int32) - np.int32(zero_point)).astype(np.float32) * scale


def quantize_bias(bias: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """int32 codes of a bias in units of s_x · s_w."""
    codes = np.rint(bias.astype(np.float64) / scales.astype(np.float64))
    return np.clip(codes, -(2**31) + 1, 2**31 - 1).astype(np.int32)


def _along(scale: np.ndarray, rank: int, axis: int | None) -> np.ndarray:
    if axis is None or scale.ndim == 0:
        return scale
    shape = [1] * rank
    shape[axis] = -1
    return scale.reshape(shape)
