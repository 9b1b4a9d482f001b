"""ONNX Resize, Pad as torch functions.

Resizing is linear along each axis: y = W x, with one row of W for each output position. The rows follow
the operator's specification (coordinate transformation, nearest rounding, cubic coefficient, antialias).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from compress.graph.operator_node import Builder, OperatorNode, Run
from compress.graph.operators_convolution import interleaved


@dataclass(frozen=True)
class Interpolation:
    """The attributes of a Resize node."""

    mode: str
    coordinates: str
    rounding: str
    cubic: float
    exclude_outside: bool
    antialias: bool
    extrapolation: float


def resize(node: OperatorNode) -> Run:
    how = Interpolation(
        node.attribute("mode", "nearest"),
        node.attribute("coordinate_transformation_mode", "half_pixel"),
        node.attribute("nearest_mode", "round_prefer_floor"),
        node.attribute("cubic_coeff_a", -0.75),
        bool(node.attribute("exclude_outside", 0)),
        bool(node.attribute("antialias", 0)),
        node.attribute("extrapolation_value", 0.0),
    )
    axes, policy = node.attribute("axes"), node.attribute("keep_aspect_ratio_policy", "stretch")
    roi_of, scales_of, sizes_of = (node.listed(i) for i in (1, 2, 3))

    def run(x: Tensor, roi: Tensor | None = None, scales: Tensor | None = None, sizes: Tensor | None = None) -> Tensor:
        chosen = [axis % x.dim() for axis in axes] if axes is not None else list(range(x.dim()))
        plan = _plan(x, chosen, scales_of(scales), sizes_of(sizes), policy)
        window = _roi(roi_of(roi), chosen, x.dim()) if how.coordinates == "tf_crop_and_resize" else {}
        fast = _interpolated(x, how, plan)
        if fast is not None:
            return fast
        for axis, (size, scale) in plan.items():
            start, end = window.get(axis, (0.0, 1.0))
            x = _along(x, axis, rows(x.shape[axis], size, scale, start, end, how), how)
        return x

    return run


def _plan(
    x: Tensor, axes: Sequence[int], scales: Sequence[float] | None, sizes: Sequence[int] | None, policy: str
) -> dict[int, tuple[int, float]]:
    """Return the output size and the scale of each axis that changes."""
    if sizes:
        ratios = [size / x.shape[axis] for axis, size in zip(axes, sizes)]
        if policy != "stretch":
            ratio = min(ratios) if policy == "not_larger" else max(ratios)
            ratios = [ratio] * len(ratios)
            sizes = [math.floor(ratio * x.shape[axis] + 0.5) for axis in axes]
        pairs = zip(axes, sizes, ratios)
        return {axis: (int(size), ratio) for axis, size, ratio in pairs if size != x.shape[axis] or ratio != 1}
    steps = zip(axes, scales or ())
    return {axis: (math.floor(x.shape[axis] * scale), scale) for axis, scale in steps if scale != 1}


def _roi(values: Sequence[float] | None, axes: Sequence[int], rank: int) -> dict[int, tuple[float, float]]:
    if not values:
        return {}
    half = len(values) // 2
    return {axis: (values[i], values[half + i]) for i, axis in enumerate(axes)}


def _interpolated(x: Tensor, how: Interpolation, plan: dict[int, tuple[int, float]]) -> Tensor | None:
    """Use torch's own kernel where it computes the same: whole images, scale = size ratio."""
    if not plan or x.dim() != 4 or min(plan) < 2 or how.antialias or how.exclude_outside:
        return None
    if any(not math.isclose(size, x.shape[axis] * scale) for axis, (size, scale) in plan.items()):
        return None
    size = [plan[axis][0] if axis in plan else x.shape[axis] for axis in (2, 3)]
    aligned = how.coordinates == "align_corners"
    if how.mode == "nearest":
        same = how.coordinates == "asymmetric" and how.rounding == "floor"
        return F.interpolate(x, size=size) if same else None
    if how.coordinates not in ("half_pixel", "align_corners") or (how.mode == "cubic" and how.cubic != -0.75):
        return None
    if aligned and len(plan) < 2:
        return None
    mode = {"linear": "bilinear", "cubic": "bicubic"}[how.mode]
    return F.interpolate(x, size=size, mode=mode, align_corners=aligned)


def _along(x: Tensor, axis: int, table: np.ndarray, how: Interpolation) -> Tensor:
    weights = torch.as_tensor(table, dtype=x.dtype, device=x.device)
    if how.mode == "nearest" and bool((weights.sum(1) == 1).all()):
        return x.index_select(axis, weights.argmax(1))
    result = torch.matmul(x.movedim(axis, -1), weights.t())
    if how.coordinates == "tf_crop_and_resize":
        outside = torch.as_tensor(~table.any(1), device=x.device)
        result = torch.where(outside, torch.full_like(result, how.extrapolation), result)
    return result.movedim(-1, axis)


@functools.lru_cache(maxsize=64)
def rows(length: int, size: int, scale: float, start: float, end: float, how: Interpolation) -> np.ndarray:
    """Return W (size x length): one row of weights for each output position."""
    table = np.zeros((size, length), dtype=np.float64)
    taps, kernel = TAPS[how.mode](how)
    stretch = max(1.0, 1.0 / scale) if how.antialias and how.mode != "nearest" else 1.0
    reach = math.ceil(taps * stretch)
    for index in range(size):
        at = position(index, length, size, scale, start, end, how.coordinates)
        if how.coordinates == "tf_crop_and_resize" and not 0 <= at <= length - 1:
            continue  # an empty row stands for the extrapolation value
        if how.mode == "nearest":
            table[index, min(max(nearest_index(at, how.rounding), 0), length - 1)] = 1
            continue
        near = np.arange(math.floor(at) - reach + 1, math.floor(at) + reach + 1)
        weights = np.array([kernel((at - tap) / stretch) for tap in near])
        inside = (near >= 0) & (near < length)
        if how.exclude_outside:
            weights = weights * inside
        if how.exclude_outside or how.antialias:
            weights = weights / weights.sum()
        np.add.at(table[index], near.clip(0, length - 1), weights)
    return table


def position(index: int, length: int, size: int, scale: float, start: float, end: float, mode: str) -> float:
    """Return the place in the input that output `index` reads (specification of Resize)."""
    # In float32, as the runtime computes it: at a tie of `nearest` the last bit decides.
    one, half, at, ratio = np.float32(1), np.float32(0.5), np.float32(index), np.float32(scale)
    if mode == "asymmetric":
        return float(at / ratio)
    if mode == "align_corners":
        return float(at * np.float32(length - 1) / np.float32(size - 1)) if size > 1 else 0.0
    if mode == "pytorch_half_pixel":
        return float((at + half) / ratio - half) if size > 1 else 0.0
    if mode == "half_pixel_symmetric":
        adjustment = np.float32(size) / (ratio * np.float32(length))
        offset = np.float32(length) / np.float32(2) * (one - adjustment)
        return float(offset + (at + half) / ratio - half)
    if mode == "tf_crop_and_resize":
        if size > 1:
            first, last, span = np.float32(start), np.float32(end), np.float32(length - 1)
            return float(first * span + at * (last - first) * span / np.float32(size - 1))
        return 0.5 * (start + end) * (length - 1)
    return float((at + half) / ratio - half)


def nearest_index(at: float, rounding: str) -> int:
    if rounding == "floor":
        return math.floor(at)
    if rounding == "ceil":
        return math.ceil(at)
    return math.ceil(at - 0.5) if rounding == "round_prefer_floor" else math.floor(at + 0.5)


def _cubic(a: float) -> Callable[[float], float]:
    def kernel(distance: float) -> float:
        d = abs(distance)
        if d <= 1:
            return ((a + 2) * d - (a + 3)) * d * d + 1
        return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a if d < 2 else 0.0

    return kernel


# Mode → how far a tap may lie, with the weight at a distance.
TAPS: dict[str, Callable[[Interpolation], tuple[int, Callable[[float], float]]]] = {
    "nearest": lambda how: (1, lambda d: 1.0),
    "linear": lambda how: (1, lambda d: max(0.0, 1.0 - abs(d))),
    "cubic": lambda how: (2, _cubic(how.cubic)),
}


def pad(node: OperatorNode) -> Run:
    """Build Pad: any axes, negative pads crop; modes constant, reflect, edge, wrap."""
    mode, attribute = node.attribute("mode", "constant"), node.attribute("pads")
    pads_of = (lambda given=None: list(attribute)) if attribute is not None else node.listed(1)
    axes_of, number = node.listed(3), node.number(2)
    fixed = node.attribute("value", 0.0) if not node.has(2) else number

    def run(x: Tensor, pads: Tensor | None = None, value: Tensor | None = None, axes: Tensor | None = None) -> Tensor:
        listed, chosen = pads_of(pads), axes_of(axes) or list(range(x.dim()))
        begins, ends = [0] * x.dim(), [0] * x.dim()
        for i, axis in enumerate(chosen):
            begins[axis], ends[axis] = listed[i], listed[len(chosen) + i]
        if mode == "constant":
            filler = fixed if fixed is not None else value.item() if value is not None else 0
            return F.pad(x, interleaved(begins, ends), value=filler)
        for axis, (begin, end) in enumerate(zip(begins, ends)):
            if begin or end:
                x = x.index_select(axis, torch.as_tensor(_source(x.shape[axis], begin, end, mode), device=x.device))
        return x

    return run


def _source(size: int, begin: int, end: int, mode: str) -> np.ndarray:
    """Return the input index behind each position of a padded axis."""
    at = np.arange(-begin, size + end)
    if mode == "edge":
        return at.clip(0, size - 1)
    if mode == "wrap":
        return at % size
    period = max(2 * (size - 1), 1)
    at = at % period
    return np.where(at >= size, period - at, at)


RESIZE: dict[str, Builder] = {"Pad": pad, "Resize": resize}
