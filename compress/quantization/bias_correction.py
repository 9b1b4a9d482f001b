"""Bias correction: the mean error that rounding a weight makes is taken off its layer's bias.

Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", §4.2.
With ε = dq(q(w)) − w the output of a product shifts on average by

    E[(w + ε) · x] − E[w · x] = ε · E[x]              so    b ← b − ε · E[x]

E[x] is the mean of each input channel over the calibration data; at the borders of a padded
convolution the mean is a little smaller, which is neglected. Depthwise layers gain the most: few
weights make one output, so that their rounding errors do not average out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from compress.graph.constants import constant_array
from compress.graph.editing import Namer
from compress.quantization.arithmetic import dequantize
from compress.quantization.kernels import number
from compress.quantization.placement import Plan, Site
from compress.quantization.weights import axis_of, codes_of, pairs_saturate_in


@dataclass
class ChannelMeans:
    """Running means of tensors, by channel."""

    axes: Mapping[str, int]  # tensor → its channel axis
    sums: dict[str, np.ndarray] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def observe(self, name: str, values: np.ndarray) -> None:
        if name not in self.axes or values.size == 0:
            return
        axis = self.axes[name] % values.ndim
        total = values.sum(axis=tuple(i for i in range(values.ndim) if i != axis), dtype=np.float64)
        self.sums[name] = self.sums.get(name, 0) + total
        self.counts[name] = self.counts.get(name, 0) + values.size // values.shape[axis]

    def __getitem__(self, name: str) -> np.ndarray:
        return self.sums[name] / self.counts[name]


def channel_axes(plan: Plan) -> dict[str, int]:
    """The tensors whose means `correct_biases` reads, each with its channel axis."""
    return {
        str(site.node.inputs[0].name): 1 if site.node.op_type == "Conv" else -1
        for site in corrected_sites(plan.sites)
        if site.node.inputs[0] is not None
    }


def input_names(plan: Plan) -> dict[str, str]:
    """Node → the tensor it reads, by name, as they are before quantize/dequantize pairs come between."""
    return {
        str(site.node.name): str(site.node.inputs[0].name)
        for site in corrected_sites(plan.sites)
        if site.node.inputs[0] is not None
    }


def correct_biases(
    graph: ir.Model,
    plan: Plan,
    inputs: Mapping[str, str],
    means: ChannelMeans,
    before: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Correct, in place, the float biases of a graph whose weights stand behind quantize/dequantize pairs.

    `before`: by node name, weights as they were, where a repair has rounded them already.
    """
    namer, saturates = Namer(graph), pairs_saturate_in(graph)
    for site in corrected_sites(plan.sites):
        node, name = site.node, inputs.get(str(site.node.name), "")
        dequantizer = node.inputs[1].producer() if node.inputs[1] is not None else None
        quantizer = dequantizer.inputs[0].producer() if dequantizer is not None and dequantizer.inputs[0] else None
        if quantizer is None or name not in means.sums:
            continue
        weight, scale = constant_array(quantizer.inputs[0]), constant_array(quantizer.inputs[1])
        codes = codes_of(quantizer, saturates=saturates)
        if weight is None or scale is None or codes is None:
            continue
        weight = (before or {}).get(str(node.name), weight)
        error = dequantize(codes, scale, axis=axis_of(quantizer) if scale.ndim else None) - weight
        _subtract(graph, site, _shift(node, error.astype(np.float64), means[name]), namer)


def shift_biases(graph: ir.Model, plan: Plan, shifts: Mapping[str, np.ndarray]) -> None:
    """Add, in place, one number per output channel to the float biases of the layers `shifts` names."""
    namer = Namer(graph) if shifts else None
    for site in corrected_sites(plan.sites):
        if namer is not None and str(site.node.name) in shifts:
            _subtract(graph, site, -shifts[str(site.node.name)], namer)


def corrected_sites(sites: Iterable[Site]) -> list[Site]:
    """The sites with weights whose kernel adds a bias."""
    return [site for site in sites if site.weighted and (site.node.op_type != "MatMul" or site.bias is not None)]


def _shift(node: ir.Node, error: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """ε · E[x] for each output."""
    if node.op_type == "Conv":
        groups = int(number(node, "group", 1))
        error = error.reshape(error.shape[0], error.shape[1], -1).sum(2)
        return np.einsum("goi,gi->go", error.reshape(groups, -1, error.shape[1]), mean.reshape(groups, -1)).reshape(-1)
    transposed = node.op_type == "Gemm" and number(node, "transB", 0)
    return error @ mean if transposed else mean @ error


def _subtract(graph: ir.Model, site: Site, shift: np.ndarray, namer: Namer) -> None:
    reader, position = place_of_bias(site)
    bias = reader.inputs[position] if len(reader.inputs) > position else None
    before = constant_array(bias)
    if bias is not None and (before is None or before.dtype != np.float32):
        return
    corrected = ((0.0 if before is None else before) - shift).astype(np.float32)
    name = str(bias.name) if bias is not None else f"{site.node.name}.bias"
    value = namer.initializer(graph, name, corrected)
    if len(reader.inputs) <= position:
        reader.resize_inputs(position + 1)
    reader.replace_input_with(position, value)


def place_of_bias(site: Site) -> tuple[ir.Node, int]:
    """(node that reads the bias, position)."""
    if site.bias is None:
        return site.node, 2
    return site.bias, next(i for i, value in enumerate(site.bias.inputs) if constant_array(value) is not None)
