"""Float layers that stay float: a form that ONNX Runtime's optimizer does not quantize on its own.

From 1.20 on ONNX Runtime quantizes, when it loads a file, the float weights of a Conv, ConvTranspose or Gemm that stands

    DequantizeLinear (one scale) → layer → [Relu, Clip] → QuantizeLinear

to int8 with one scale for the whole weight (`weight_bias_quantization.cc`, "WeightBiasQuantization"). A depthwise layer
that was left in float for accuracy then loses more than if it had been quantized per channel. The optimizer asks for a
DequantizeLinear with a single scale in front of the layer. The layer therefore gets one of its own that holds the same
scale once for each channel: equal to the bit, the same work, and left alone. A list of one scale counts as a single
one, so a layer that reads one channel gets a LeakyRelu of slope 1 behind it instead, which the pattern does not know.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compress.graph.constants import constant_array
from compress.graph.editing import add_initializer, consumers, unique_name

QUANTIZED_AT_LOAD = frozenset({"Conv", "ConvTranspose", "Gemm"})


def keep_float_layers(graph: ir.Model) -> int:
    """Give each float layer that ONNX Runtime would quantize at load a form that it leaves alone; return how many."""
    changed = 0
    for node in list(graph.graph):
        if node.op_type in QUANTIZED_AT_LOAD and node.domain in ("", "ai.onnx") and _would_be_quantized(node):
            if _channels(node) > 1:
                _feed_by_channel(graph, node)
            else:
                _follow_by_identity(graph, node)
            changed += 1
    return changed


def _would_be_quantized(node: ir.Node) -> bool:
    x, weight = node.inputs[0], node.inputs[1]
    before = x.producer() if x is not None else None
    if before is None or before.op_type != "DequantizeLinear" or weight is None:
        return False
    scale, stored = constant_array(before.inputs[1]), constant_array(weight)
    if scale is None or scale.size != 1 or stored is None or stored.dtype != np.float32:
        return False
    return _leads_to_quantize(node)


def _leads_to_quantize(node: ir.Node) -> bool:
    """One reader after the other up to a QuantizeLinear, clips alone between."""
    while True:
        readers = consumers(node.outputs[0])
        if len(readers) != 1 or node.outputs[0].is_graph_output():
            return False
        node = readers[0]
        if node.op_type == "QuantizeLinear":
            return True
        if node.op_type not in ("Relu", "Clip"):
            return False


def _channels(node: ir.Node) -> int:
    """How many channels the layer reads along its input's axis `_axis`."""
    weight = constant_array(node.inputs[1])
    assert weight is not None
    if node.op_type == "Conv":
        return int(weight.shape[1]) * node.attributes.get_int("group", 1)
    if node.op_type == "Gemm" and node.attributes.get_int("transB", False):
        return int(weight.shape[1])
    return int(weight.shape[0])


def _axis(node: ir.Node) -> int:
    """The axis of the layer's input along which its channels lie."""
    return 0 if node.op_type == "Gemm" and node.attributes.get_int("transA", False) else 1


def _feed_by_channel(graph: ir.Model, node: ir.Node) -> None:
    before = node.inputs[0].producer()  # type: ignore[union-attr]  # such a node has that input
    assert before is not None
    count, scale = _channels(node), constant_array(before.inputs[1])
    assert scale is not None
    zero = constant_array(before.inputs[2]) if len(before.inputs) > 2 else None
    name = node.name or node.outputs[0].name
    values = [add_initializer(graph, f"{name}/x_scale", np.repeat(scale.reshape(1), count))]
    if zero is not None:
        values.append(add_initializer(graph, f"{name}/x_zero_point", np.repeat(zero.reshape(1), count)))
    own = ir.node("DequantizeLinear", [before.inputs[0], *values], {"axis": _axis(node)}, name=f"{name}/DQ_by_channel")
    old, new = before.outputs[0], own.outputs[0]
    new.name, new.type, new.shape = unique_name(graph, f"{old.name}_by_channel"), old.type, old.shape
    graph.graph.insert_before(node, own)
    node.replace_input_with(0, new)


def _follow_by_identity(graph: ir.Model, node: ir.Node) -> None:
    old = node.outputs[0]
    name = node.name or old.name
    own = ir.node("LeakyRelu", [old], {"alpha": 1.0}, name=f"{name}/unchanged")
    new = own.outputs[0]
    new.name, new.type, new.shape = unique_name(graph, f"{old.name}_unchanged"), old.type, old.shape
    for reader, index in [use for use in old.uses() if use.node is not own]:
        reader.replace_input_with(index, new)
    graph.graph.insert_after(node, own)
