"""What ONNX Runtime's CPU kernels ask of a quantize/dequantize graph, from its QDQ transformers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from compress.graph.constants import constant_array
from compress.graph.editing import consumers
from compress.quantization.float_layers import QUANTIZED_AT_LOAD
from compress.quantization.kernels import HEAVY
from compress.quantization.rules.common import half_quantized
from compress.quantization.rules.layers import axis_is_wrong, layers_of, name_of
from compress.quantization.rules.rule import FLOAT, SLOW, WRONG, Rule

SOURCE = "ONNX Runtime, optimizer/qdq_transformer"


def _float_results(graph: ir.Model) -> Iterator[str]:
    for layer in layers_of(graph):
        if layer.node.op_type != "Conv" or layer.x is None or layer.weight is None:
            continue
        readers = consumers(layer.node.outputs[0])
        clipped = len(readers) == 1 and readers[0].op_type in ("Relu", "Clip")
        if clipped:
            readers = consumers(readers[0].outputs[0])
        if len(readers) != 1 or readers[0].op_type != "QuantizeLinear" or (clipped and not _ends_at_zero(readers[0])):
            yield name_of(layer.node)


def _ends_at_zero(quantize: ir.Node) -> bool:
    """Whether the smallest code stands for 0, so that quantizing does what Relu does."""
    zero = constant_array(quantize.inputs[2]) if len(quantize.inputs) > 2 else None
    return zero is None or bool((zero == np.iinfo(zero.dtype).min).all())


def _by_channel(graph: ir.Model) -> Iterator[str]:
    for layer in layers_of(graph):
        if layer.weight is not None and layer.x is not None and layer.x.by_channel:
            yield name_of(layer.node)


def _transposed(graph: ir.Model) -> Iterator[str]:
    yield from (
        name_of(layer.node) for layer in layers_of(graph) if layer.node.op_type == "ConvTranspose" and layer.weight
    )


def _weight_axes(graph: ir.Model) -> Iterator[str]:
    yield from (name_of(layer.node) for layer in layers_of(graph) if axis_is_wrong(layer))


def _quantized_at_load(graph: ir.Model) -> Iterator[str]:
    for layer in layers_of(graph):
        if not layer.weighted or layer.weight is not None or layer.x is None or layer.x.by_channel:
            continue
        readers = consumers(layer.node.outputs[0])
        follows = len(readers) == 1 and readers[0].op_type in ("QuantizeLinear", "Relu", "Clip")
        if follows and layer.node.op_type in QUANTIZED_AT_LOAD:
            yield name_of(layer.node)


def _mixed_signs(graph: ir.Model) -> Iterator[str]:
    for layer in layers_of(graph):
        if layer.x and layer.weight and layer.x.codes == ir.DataType.INT8 and layer.weight.codes == ir.DataType.INT8:
            yield name_of(layer.node)


RULES = (
    Rule(WRONG, "a float layer between a pair's two ends is quantized when the file is loaded (1.20 and later), by one scale", "ONNX Runtime, WeightBiasQuantization", _quantized_at_load),
    Rule(FLOAT, "a convolution's result goes straight, or through a Relu or Clip that the codes' range makes needless, into one QuantizeLinear", SOURCE, _float_results),
    Rule(FLOAT, "inputs have one scale for the whole tensor", SOURCE, _by_channel),
    Rule(FLOAT, "transposed convolutions have no int8 kernel", SOURCE, _transposed),
    Rule(FLOAT, "scales of weights lie along the outputs", SOURCE, _weight_axes),
    Rule(
        FLOAT, "a layer runs in int8 where both its input and its weight are dequantized", SOURCE,
        lambda graph: half_quantized(graph, HEAVY),
    ),
    Rule(SLOW, "on x86 activations are u8: s8·s8 has no fast kernel there (it has on arm64)", "ONNX Runtime, MLAS", _mixed_signs),
)  # fmt: skip
