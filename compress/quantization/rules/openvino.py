"""What OpenVINO's CPU plugin asks of a quantize/dequantize graph, from its low-precision transformations."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from compress.quantization.rules.common import (
    foreign_operators,
    gates_taken_apart,
    half_quantized,
    unequal_concats,
)
from compress.quantization.rules.layers import layers_of, name_of
from compress.quantization.rules.rule import FLOAT, REFUSED, SLOW, Rule

DOCS = "OpenVINO documentation, low precision transformations"


def _signed_inputs(graph: ir.Model) -> Iterator[str]:
    for layer in layers_of(graph):
        if layer.node.op_type != "Conv" or not layer.weight or not layer.x:
            continue
        # With zero point 0 it becomes u8 where the processor has no AMX (measured, 2026.4).
        if layer.x.codes == ir.DataType.INT8 and not layer.x.symmetric:
            yield name_of(layer.node)


def _by_channel(graph: ir.Model) -> Iterator[str]:
    for layer in layers_of(graph):
        grouped = layer.node.attributes.get_int("group", 1) > 1
        if layer.weight and layer.x and layer.x.by_channel and layer.node.op_type != "MatMul" and not grouped:
            yield name_of(layer.node)


def _unsigned_weights(graph: ir.Model) -> Iterator[str]:
    for layer in layers_of(graph):
        if layer.weighted and layer.weight is not None and layer.weight.codes == ir.DataType.UINT8:
            yield name_of(layer.node)


def _asymmetric_transposed(graph: ir.Model) -> Iterator[str]:
    for layer in layers_of(graph):
        pairs = [pair for pair in (layer.x, layer.weight) if pair is not None]
        if layer.node.op_type == "ConvTranspose" and len(pairs) == 2 and not all(pair.symmetric for pair in pairs):
            yield name_of(layer.node)


RULES = (
    Rule(REFUSED, "operators of ONNX, none of ONNX Runtime's own", "OpenVINO, supported ONNX operators", foreign_operators),
    Rule(SLOW, "a convolution reads u8, or s8 with zero point 0", DOCS, _signed_inputs),
    Rule(FLOAT, "the input of a convolution has one scale, unless it is grouped", DOCS, _by_channel),
    Rule(FLOAT, "weights are s8", DOCS, _unsigned_weights),
    Rule(FLOAT, "a transposed convolution has zero points 0", DOCS, _asymmetric_transposed),
    Rule(
        FLOAT, "a layer runs in int8 where both its input and its weight are dequantized", DOCS,
        lambda graph: half_quantized(graph, ("Conv", "ConvTranspose", "Gemm", "MatMul")),
    ),
    Rule(SLOW, "no pair inside x · sigmoid(x)", "NNCF, fused patterns of the CPU plugin", gates_taken_apart),
    Rule(SLOW, "all inputs of a Concat have one scale", DOCS, unequal_concats),
)  # fmt: skip
