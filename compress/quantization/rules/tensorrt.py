"""What TensorRT asks of a quantize/dequantize graph, from its documentation and its maintainers' answers."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from compress.quantization.rules.common import (
    additions_without_pair,
    foreign_operators,
    gates_taken_apart,
    half_quantized,
    pairs_before_additions,
    unequal_concats,
)
from compress.quantization.rules.layers import axis_is_wrong, layers_of, name_of, pairs_of
from compress.quantization.rules.rule import FLOAT, REFUSED, SLOW, Rule

DOCS = "TensorRT documentation, Working with Quantized Types"
_NARROW = (ir.DataType.INT4, ir.DataType.UINT4)


def _zero_points(graph: ir.Model) -> Iterator[str]:
    for node, pair, _ in pairs_of(graph):
        if not pair.symmetric:
            yield f"{name_of(node)} (zero point {int(pair.zero.flat[0])})"  # type: ignore[union-attr]  # the rule is of those that have one


def _unsigned(graph: ir.Model) -> Iterator[str]:
    for node, pair, _ in pairs_of(graph):
        if pair.codes is not None and pair.codes not in (ir.DataType.INT8, ir.DataType.INT32, *_NARROW):
            yield f"{name_of(node)} ({pair.codes.name.lower()})"


def _by_channel(graph: ir.Model) -> Iterator[str]:
    for node, pair, constant in pairs_of(graph):
        if pair.by_channel and not constant:
            yield f"{name_of(node)} ({pair.scale.size} scales)"  # type: ignore[union-attr]  # the rule is of those that have one


def _weight_axes(graph: ir.Model) -> Iterator[str]:
    for layer in layers_of(graph):
        if axis_is_wrong(layer):
            yield f"{name_of(layer.node)} (axis {layer.weight.axis})"  # type: ignore[union-attr]  # the rule is of those that have one


def _integer_biases(graph: ir.Model) -> Iterator[str]:
    for node, pair, constant in pairs_of(graph):
        if constant and pair.codes == ir.DataType.INT32:
            yield name_of(node)


def _widened(graph: ir.Model) -> Iterator[str]:
    for node in graph.graph:
        stored = node.inputs[0] if node.op_type == "Cast" else None
        if stored is not None and stored.is_initializer() and stored.dtype in _NARROW:
            yield name_of(node)


RULES = (
    Rule(REFUSED, "zero points are 0, of weights and of activations", "TensorRT issues 2774, 4698", _zero_points),
    Rule(REFUSED, "codes are int8, not uint8", DOCS, _unsigned),
    Rule(REFUSED, "activations have one scale for the whole tensor", DOCS, _by_channel),
    Rule(REFUSED, "scales of weights lie along the outputs", DOCS, _weight_axes),
    Rule(REFUSED, "biases are float, not int32 behind a DequantizeLinear", DOCS, _integer_biases),
    Rule(REFUSED, "four-bit weights stand at a MatMul in blocks, not behind a Cast to int8", DOCS, _widened),
    Rule(REFUSED, "pairs of QuantizeLinear and DequantizeLinear, no integer operators", DOCS, foreign_operators),
    Rule(
        FLOAT, "a layer runs in int8 where both its input and its weight are dequantized", DOCS,
        lambda graph: half_quantized(graph, ("Conv", "ConvTranspose", "Gemm", "MatMul")),
    ),
    Rule(FLOAT, "a residual addition has a pair on its other branch", "TensorRT issues 1992, 3270", additions_without_pair),
    Rule(SLOW, "no pair between a convolution and the addition behind it", "TensorRT issue 1992", pairs_before_additions),
    Rule(SLOW, "no pair inside x · sigmoid(x)", "TensorRT issues 3629, 3205", gates_taken_apart),
    Rule(SLOW, "all inputs of a Concat have one scale", "TensorRT issue 3861", unequal_concats),
)  # fmt: skip
