"""Rounding with error feedback: what rounding one weight costs is made good by the weights that are not rounded yet.

Frantar et al. 2022, "GPTQ", after Hassibi & Stork's Optimal Brain Surgeon. For a layer y = W·x with H = E[x·xᵀ] and U the
upper Cholesky factor of H⁻¹, column by column in order of falling H_ii:

    q_i = round(w_i / s),    e = (w_i − s·q_i) / U_ii,    w_j ← w_j − e · U_ij  for all j > i

Where the layer's bias takes up the mean error, ε·E[x] (`bias_correction.py`), H is the covariance: what is left is all that
counts then, and a mean would rule it. One factorization for each layer, or for each group of a convolution; convolutions are products with their patches.
Scales stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from compress.graph.constants import constant_array
from compress.quantization.bias_correction import corrected_sites
from compress.quantization.calibrated import Calibrated
from compress.quantization.calibration import run_streaming
from compress.quantization.kernels import number, weight_axis
from compress.quantization.repairs.judge import Samples
from compress.quantization.targets import weight_limit

POSITIONS = 48  # of a layer's output that are looked at, for each sample
LARGEST = 4096  # inputs of one output; past it the factorization takes longer than it is worth
DAMPING = 0.01  # of the mean diagonal, so that channels that hardly ever fire do not rule
BLOCK = 64  # columns that are rounded before their error is carried to the rest


@dataclass
class Products:
    """E[x·xᵀ] of a layer's inputs, (groups, K, K), K in the order of the weight's own layout."""

    node: ir.Node
    size: int
    groups: int
    centred: bool  # E[(x − E[x])·(x − E[x])ᵀ] instead
    total: np.ndarray = field(init=False)
    sums: np.ndarray = field(init=False)
    count: int = 0

    def __post_init__(self) -> None:
        self.total = np.zeros((self.groups, self.size, self.size), np.float64)
        self.sums = np.zeros((self.groups, self.size), np.float64)

    def look(self, values: np.ndarray) -> None:
        rows = rows_of(self.node, values, self.groups)  # (groups, m, K)
        self.total += np.einsum("gmi,gmj->gij", rows, rows, optimize=True)
        self.sums += rows.sum(1)
        self.count += rows.shape[1]

    def mean(self, group: int) -> np.ndarray:
        """The products of one group."""
        count = max(self.count, 1)
        middle = self.sums[group] / count
        return self.total[group] / count - (np.outer(middle, middle) if self.centred else 0)


def round_weights(
    calibrated: Calibrated, samples: Samples, *, threads: int | None = None
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(weights on their grids, scales) by node name, of every layer whose inputs are few enough."""
    plan = calibrated.planned(calibrated.graph)
    centred = {site.node for site in corrected_sites(plan.sites)} if calibrated.means.axes else set()
    nodes = [site.node for site in plan.sites if site.weighted and site.node.name not in calibrated.excluded]
    products = {str(node.name): made for node in nodes if (made := _products(node, node in centred)) is not None}
    fill(list(products.values()), calibrated.graph, samples, threads)
    weights, scales = {}, {}
    for name, made in products.items():
        weights[name], scales[name] = _rounded(calibrated, made)
    return weights, scales


def fill(products: Sequence[Products], graph: ir.Model, samples: Samples, threads: int | None) -> None:
    """Let each of `products` see what arrives at its layer, in one run of `graph` over the fitting samples."""
    by_input: dict[str, list[Products]] = {}
    for made in products:
        by_input.setdefault(str(made.node.inputs[0].name), []).append(made)  # type: ignore[union-attr]  # such a node has that input

    def look(name: str, values: np.ndarray) -> None:
        for made in by_input[name]:
            made.look(values)

    run_streaming(graph, tuple(by_input), samples.batches(), look, threads=threads, description="rounding")


def _products(node: ir.Node, centred: bool) -> Products | None:
    weight = constant_array(node.inputs[1])
    if weight is None or len(list(node.inputs[1].uses())) > 1:  # type: ignore[union-attr]  # such a node has that input
        return None
    if weight.ndim < 2 or (node.op_type == "MatMul" and weight.ndim != 2):
        return None
    groups = int(number(node, "group", 1)) if node.op_type == "Conv" else 1
    size = int(np.prod(weight.shape[1:])) if node.op_type == "Conv" else by_output(node, weight).shape[1]
    if size > LARGEST or groups * size * size > LARGEST * LARGEST:
        return None
    if node.op_type == "Conv" and node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return None
    return Products(node, size, groups, centred)


def _rounded(calibrated: Calibrated, made: Products) -> tuple[np.ndarray, np.ndarray]:
    node = made.node
    weight = constant_array(node.inputs[1])
    assert weight is not None
    axis = weight_axis(node) if calibrated.weights.per_channel else None
    scales = calibrated.weights.scales(node, weight, axis)
    limit = weight_limit(calibrated.weights.bits_of(node))
    rows = by_output(node, weight).reshape(made.groups, -1, made.size)
    steps = np.broadcast_to(scales.reshape(-1), (rows.shape[0] * rows.shape[1],)).reshape(rows.shape[:2])
    found = np.stack([
        feed_back(rows[group], steps[group], made.mean(group), limit)
        for group in range(made.groups)
    ])  # fmt: skip
    return from_output(node, found.reshape(-1, made.size), weight.shape), scales


def feed_back(
    rows: np.ndarray, scales: np.ndarray, products: np.ndarray, limit: int, *, low: int | None = None
) -> np.ndarray:
    """`rows` (outputs, K) on the grid of `scales`, rounded so that E‖(ŵ − w)·x‖² is small; `products` is E[x·xᵀ].

    `scales` has one number for each row, or for each weight. Codes lie in `low` (−limit) … limit.
    """
    low = -limit if low is None else low
    size = rows.shape[1]
    diagonal = np.diag(products).copy()
    order = np.argsort(-diagonal, kind="stable")
    damped = products[np.ix_(order, order)] + np.eye(size) * max(DAMPING * float(diagonal.mean()), 1e-12)
    upper = np.linalg.cholesky(np.linalg.inv(damped)).T
    rest, result = rows[:, order].astype(np.float64), np.empty(rows.shape, np.float64)
    step = np.broadcast_to(scales.astype(np.float64).reshape(len(rows), -1), rows.shape)[:, order]
    for first in range(0, size, BLOCK):
        last = min(first + BLOCK, size)
        errors = np.empty((len(rows), last - first))
        for column in range(first, last):
            wanted = rest[:, column]
            result[:, column] = np.clip(np.rint(wanted / step[:, column]), low, limit) * step[:, column]
            errors[:, column - first] = (wanted - result[:, column]) / upper[column, column]
            if column + 1 < last:
                rest[:, column + 1 : last] -= np.outer(errors[:, column - first], upper[column, column + 1 : last])
        rest[:, last:] -= errors @ upper[first:last, last:]
    back = np.empty_like(result)
    back[:, order] = result
    return back.astype(np.float32)


def by_output(node: ir.Node, weight: np.ndarray) -> np.ndarray:
    """The weight as (outputs, K)."""
    if node.op_type == "Conv":
        return weight.reshape(weight.shape[0], -1)
    return weight if node.op_type == "Gemm" and number(node, "transB", 0) else weight.T


def from_output(node: ir.Node, rows: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Undo `by_output`."""
    if node.op_type == "Conv" or (node.op_type == "Gemm" and number(node, "transB", 0)):
        return rows.reshape(shape)
    return np.ascontiguousarray(rows.T)


def rows_of(node: ir.Node, values: np.ndarray, groups: int) -> np.ndarray:
    """What the layer multiplies its weights with, at some positions of each sample: (groups, m, K)."""
    if node.op_type != "Conv":
        flat = values.reshape(-1, values.shape[-1])
        return flat[_spread(len(flat), POSITIONS * len(values))][None].astype(np.float64)
    weight = constant_array(node.inputs[1])
    assert weight is not None
    rank, kernel = weight.ndim - 2, weight.shape[2:]
    strides = node.attributes.get_ints("strides", [1] * rank)
    dilations = node.attributes.get_ints("dilations", [1] * rank)
    pads = node.attributes.get_ints("pads", [0] * 2 * rank)
    padded = np.pad(values, [(0, 0), (0, 0), *((pads[i], pads[i + rank]) for i in range(rank))])
    spans = [(size - 1) * step + 1 for size, step in zip(kernel, dilations)]
    windows: Any = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=tuple(range(2, 2 + rank)))
    picks = (slice(None), slice(None), *(slice(None, None, step) for step in (*strides, *dilations)))
    windows = windows[picks]  # (samples, channels, position…, kernel…)
    places = windows.shape[2 : 2 + rank]
    chosen = np.unravel_index(_spread(int(np.prod(places)), POSITIONS), places)
    patches: Any = windows[(slice(None), slice(None), *chosen)]  # (samples, channels, chosen, kernel…)
    channels = patches.shape[1] // groups
    patches = np.moveaxis(patches, 1, 2)  # (samples, chosen, channels, kernel…)
    flat = patches.reshape(patches.shape[0] * patches.shape[1], groups, channels * int(np.prod(kernel)))
    return np.moveaxis(flat, 1, 0).astype(np.float64)


def _spread(count: int, most: int) -> np.ndarray:
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(int))
