"""Whether an int8 file would overflow on x86 without VNNI, which adds pairs in 16 bits.

`vpmaddubsw` multiplies unsigned bytes a by signed bytes w and adds neighbours into a saturating 16-bit number, which a
second instruction widens and adds up in 32 bits:

    y = Σᵢ sat₁₆(a₂ᵢ·w₂ᵢ + a₂ᵢ₊₁·w₂ᵢ₊₁)        −32768 ≤ sat₁₆ ≤ 32767;  255·127·2 = 64770 saturates

`pairs.py` chooses weights for which that cannot happen. Here it is checked on a finished file, any file: the codes that
real samples bring to every layer are multiplied the way that processor does, and the pairs that leave 16 bits counted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from compress.counting import counted
from compress.graph.constants import constant_array
from compress.graph.naming import layer_of
from compress.quantization.calibration import run_streaming
from compress.quantization.pairs import as_rows, has_pairs, largest_pairs
from compress.steps import Change

LOW, HIGH = -(1 << 15), (1 << 15) - 1
_ROWS = 32  # positions of a layer's output that are looked at, for each sample


def saturating_matmul(codes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """codes (m, k) uint8 · weights (k, n) int8 as x86 without VNNI computes it; an odd last product stands alone."""
    return np.clip(pair_sums(codes, weights), LOW, HIGH).sum(axis=1, dtype=np.int32)


def pair_sums(codes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The exact sums of neighbouring products, (m, ⌈k/2⌉, n), before any saturation."""
    if codes.shape[1] % 2:
        codes, weights = np.pad(codes, ((0, 0), (0, 1))), np.pad(weights, ((0, 1), (0, 0)))
    products = codes.astype(np.int32)[:, :, None] * weights.astype(np.int32)[None]
    return products[:, 0::2] + products[:, 1::2]


def count_saturations(codes: np.ndarray, weights: np.ndarray) -> int:
    """How many pairs of codes (m, k) uint8 · weights (k, n) int8 leave 16 bits."""
    pairs = pair_sums(codes, weights)
    return int(((pairs > HIGH) | (pairs < LOW)).sum())


def can_saturate(rows: np.ndarray) -> bool:
    """Whether some uint8 activations make a pair of these weights, (n, k) int8 as the kernel reads them, overflow."""
    return bool((largest_pairs(rows.astype(np.int32)) * 255 > HIGH).any())


def check_saturation(graph: ir.Model, batches: Iterable[Any], *, threads: int | None = None) -> tuple[Change, ...]:
    """Count overflowing pairs in every layer of an int8 graph that multiplies u8 activations by s8 weights.

    Returns:
        One change for each such layer whose weights could overflow, `skipped` where some sample made them do so, with
        the share of pairs in its reason; and one that says how many layers could not overflow whatever comes.
    """
    layers = [layer for node in graph.graph if (layer := _layer(node)) is not None]
    risky = [layer for layer in layers if can_saturate(layer.rows)]
    by_input: dict[str, list[_Layer]] = {}
    for layer in risky:
        by_input.setdefault(str(layer.codes.name), []).append(layer)

    def look(name: str, values: np.ndarray) -> None:
        for layer in by_input[name]:
            layer.count(values)

    if risky:
        run_streaming(graph, tuple(by_input), batches, look, threads=threads, description="looking for overflows")
    safe = Change(
        "",
        f"{len(layers) - len(risky)} of {counted(len(layers), 'layer')} cannot overflow 16 bits, whatever their input",
    )
    return (safe, *(layer.change() for layer in risky))


@dataclass
class _Layer:
    node: ir.Node
    codes: ir.Value  # uint8, as quantized
    zero_point: int
    rows: np.ndarray  # (n, k) int8
    kernel: tuple[int, ...]  # of a convolution
    pairs: int = 0
    overflows: int = 0

    def count(self, codes: np.ndarray) -> None:
        groups = self.node.attributes.get_int("group", 1) if self.node.op_type == "Conv" else 1
        patches = _patches(self, codes, groups)
        size = len(self.rows) // groups
        for group in range(groups):
            weights = self.rows[group * size : (group + 1) * size].T
            self.overflows += count_saturations(patches[group], weights)
            self.pairs += len(patches[group]) * -(-weights.shape[0] // 2) * weights.shape[1]

    def change(self) -> Change:
        values = {"pairs": self.pairs, "overflows": self.overflows, "node": self.node.name or ""}
        if not self.overflows:
            return Change(layer_of(self.node), "no pair overflowed on these samples", values=values)
        share = f"{self.overflows} of {counted(self.pairs, 'pair')} looked at leave 16 bits; quantize with --target any"
        return Change(layer_of(self.node), "right on x86 without VNNI", share, skipped=True, values=values)


def _layer(node: ir.Node) -> _Layer | None:
    """The node as a layer that adds u8·s8 pairs; None where it is another kind, or runs in float."""
    if not has_pairs(node) or len(node.inputs) < 2:
        return None
    activation, weight = (_dequantized(value) for value in node.inputs[:2])
    if activation is None or weight is None or activation[0].dtype != ir.DataType.UINT8:
        return None
    codes = constant_array(weight[0])
    if codes is None or codes.dtype != np.int8 or constant_array(activation[0]) is not None:
        return None
    return _Layer(node, activation[0], activation[1], as_rows(node, codes), codes.shape[2:])


def _dequantized(value: ir.Value | None) -> tuple[ir.Value, int] | None:
    """(codes, zero point) of a tensor that comes from a DequantizeLinear."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "DequantizeLinear" or node.inputs[0] is None:
        return None
    zero = constant_array(node.inputs[2]) if len(node.inputs) > 2 else None
    return node.inputs[0], 0 if zero is None else int(zero.reshape(-1)[0])


def _patches(layer: _Layer, codes: np.ndarray, groups: int) -> list[np.ndarray]:
    """For each group some rows (m, k) of what the layer multiplies, k channels last; positions spread evenly."""
    node, kernel = layer.node, layer.kernel
    if node.op_type != "Conv":
        flat = codes.reshape(-1, codes.shape[-1])
        return [flat[_spread(len(flat), _ROWS * len(codes))]]
    rank = len(kernel)
    strides = node.attributes.get_ints("strides", [1] * rank)
    dilations = node.attributes.get_ints("dilations", [1] * rank)
    pads = _pads(node, codes.shape[2:], kernel, strides, dilations)
    padded = np.pad(codes, [(0, 0), (0, 0), *pads], constant_values=layer.zero_point)
    spans = [(size - 1) * step + 1 for size, step in zip(kernel, dilations)]
    windows = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=tuple(range(2, 2 + rank)))
    steps: list[Any] = [slice(None), slice(None), *(slice(None, None, step) for step in (*strides, *dilations))]
    windows = windows[tuple(steps)]
    # (sample, channel, position…, kernel…) → (sample, position…, kernel…, channel)
    windows = np.moveaxis(windows, 1, -1)
    positions = int(np.prod(windows.shape[1 : 1 + rank]))
    chosen: list[Any] = [slice(None), *np.unravel_index(_spread(positions, _ROWS), windows.shape[1 : 1 + rank])]
    patches = windows[tuple(chosen)]  # (sample, chosen, kernel…, channel)
    channels = patches.shape[-1] // groups
    return [
        patches[..., group * channels : (group + 1) * channels].reshape(-1, int(np.prod(kernel)) * channels)
        for group in range(groups)
    ]


def _pads(
    node: ir.Node, image: tuple[int, ...], kernel: tuple[int, ...], strides: Iterable[int], dilations: Iterable[int]
) -> list[tuple[int, int]]:
    rank = len(kernel)
    mode = node.attributes.get_string("auto_pad", "NOTSET")
    if mode in ("NOTSET", "VALID"):
        pads = node.attributes.get_ints("pads", [0] * 2 * rank) if mode == "NOTSET" else [0] * 2 * rank
        return [(pads[axis], pads[axis + rank]) for axis in range(rank)]
    found = []
    for size, width, step, dilation in zip(image, kernel, strides, dilations):
        total = max((-(-size // step) - 1) * step + (width - 1) * dilation + 1 - size, 0)
        small, large = total // 2, total - total // 2
        found.append((small, large) if mode == "SAME_UPPER" else (large, small))
    return found


def _spread(count: int, most: int) -> np.ndarray:
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(int))
