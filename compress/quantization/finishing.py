"""The last touches to a folded int8 graph: padding on codes, nothing stored twice."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from compress.graph.constants import constant_array, is_constant
from compress.graph.editing import Namer, consumers, remove_unused
from compress.quantization.float_layers import keep_float_layers
from compress.quantization.rescaling import carry
from compress.quantization.storage import narrow_codes, store_in_four_bits, store_tables
from compress.quantization.weights import wants_of

_ON_CODES = frozenset({"Pad", "Expand"})  # ONNX Runtime moves codes through the others by itself


def finish(graph: ir.Model, *, tables: Mapping[str, int] | None = None) -> ir.Model:
    """Finish `graph` in place and return it.

    Args:
        tables: by node name, the bits in which tables that are read by rows are stored.
    """
    namer = Namer(graph)
    for node in list(graph.graph):
        if node.op_type in _ON_CODES:
            _move_on_codes(graph, node, namer)
    carry(graph)
    for node in graph.graph:
        if node.op_type == "Conv":
            _drop_zero_points(node)
    for bits in sorted(set((tables or {}).values())):
        store_tables(graph, [name for name, wanted in (tables or {}).items() if wanted == bits], bits=bits)
    ir.passes.common.DeduplicateInitializersPass(size_limit=4096)(graph)
    remove_unused(graph)
    if not wants_of(
        graph, "symmetric"
    ):  # the form has a scale for each channel of an activation, which TensorRT refuses
        keep_float_layers(graph)
    store_in_four_bits(graph, narrow_codes(graph))
    _drop_notes(graph)
    graph.producer_name = "compress"
    return graph


def _move_on_codes(graph: ir.Model, node: ir.Node, namer: Namer) -> None:
    """DQ → Pad → Q with one grid becomes Pad of the codes, which pads with the zero point."""
    before = node.inputs[0].producer() if node.inputs[0] is not None else None
    readers = consumers(node.outputs[0])
    if before is None or before.op_type != "DequantizeLinear" or len(readers) != 1:
        return
    after = readers[0]
    if after.op_type != "QuantizeLinear" or node.outputs[0].is_graph_output():
        return
    if [value for value in before.inputs[1:]] != [value for value in after.inputs[1:]]:
        return
    codes, zero = before.inputs[0], before.inputs[2]
    inputs = [codes, *node.inputs[1:]]
    if (
        node.op_type == "Pad"
        and (node.attributes["mode"].as_string() if "mode" in node.attributes else "constant") == "constant"
    ):
        rest = list(node.inputs[3:])
        inputs = [codes, node.inputs[1], zero, *rest]
    moved = ir.node(node.op_type, inputs, dict(node.attributes), name=node.name)
    value, old = moved.outputs[0], after.outputs[0]
    value.name, value.type, value.shape = namer(f"{old.name}_moved"), old.type, old.shape
    graph.graph.insert_before(after, moved)
    old.replace_all_uses_with(value)
    graph.graph.remove([after, node], safe=True)


def _drop_zero_points(node: ir.Node) -> None:
    """The convolution's kernel takes weights without a zero point; Gemm's and MatMul's ask for one."""
    for value in node.inputs[1:]:
        dequantize = value.producer() if value is not None else None
        if dequantize is None or dequantize.op_type != "DequantizeLinear" or len(dequantize.inputs) < 3:
            continue
        zero = constant_array(dequantize.inputs[2])
        if zero is not None and zero.dtype == np.int8 and not zero.any() and len(consumers(dequantize.outputs[0])) == 1:
            dequantize.resize_inputs(2)


def _drop_notes(graph: ir.Model) -> None:
    """Doc strings and the exporter's notes (source paths, stack traces) do not ship."""
    for part in graph.graphs():
        part.metadata_props.clear()
        part.doc_string = None
        for node in part:
            node.metadata_props.clear()
            node.doc_string = None
            for value in node.outputs:
                value.metadata_props.clear()
                value.doc_string = None
        for value in (*part.inputs, *part.initializers.values()):
            value.metadata_props.clear()
    graph.doc_string = None


def without_zero_points(graph: ir.Model) -> ir.Model:
    """Leave out, in place, the zero points of signed weights, which are 0 without being named; return the graph."""
    for node in graph.graph:
        if node.op_type != "DequantizeLinear" or len(node.inputs) < 3 or node.inputs[0] is None:
            continue
        zero = constant_array(node.inputs[2])
        if is_constant(node.inputs[0]) and zero is not None and zero.dtype == np.int8 and not zero.any():
            node.resize_inputs(2)
    remove_unused(graph)
    return graph
