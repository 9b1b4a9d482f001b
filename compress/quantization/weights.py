"""Weights on their grid: first float behind a quantize/dequantize pair, later folded to int8.

Unfolded (what QAT trains):   w ─ QuantizeLinear(s_w, 0) ─ DequantizeLinear(s_w, 0) ─ Conv        bias float
Folded (what ships):          int8 codes ─ DequantizeLinear(s_w) ─ Conv                          bias int32 · s_x·s_w
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compress.graph.constants import constant_array, is_constant
from compress.graph.editing import Namer, consumers, remove_unused
from compress.onnx_files import give_back
from compress.quantization.arithmetic import quantize, quantize_bias, scales_that_hold_bias
from compress.quantization.pairs import as_rows, from_rows, has_pairs, shrink_pairs
from compress.quantization.targets import TARGETS

TARGET = "compress.target"  # note on the model: what it was quantized for
LIMIT = "compress.limit"  # note on a weight's QuantizeLinear, then on its codes: they lie in −limit … limit


def limit_of(quantize_node: ir.Node) -> int:
    """The largest magnitude of the codes that this weight's QuantizeLinear may make: 127, or less."""
    return int(quantize_node.metadata_props.get(LIMIT, "127"))


def fold_weights(graph: ir.Model) -> ir.Model:
    """Return a clone in which constants behind QuantizeLinear are codes, and biases int32.

    A bias folds where its node reads a dequantized activation and a folded weight. Idempotent.
    """
    graph = graph.clone()
    namer = Namer(graph)
    float_bias = wants_of(graph, "float_bias")
    if not float_bias:
        _hold_biases(graph)
    saturates = pairs_saturate_in(graph)
    for node in list(graph.graph):
        if node.op_type == "QuantizeLinear" and is_constant(node.inputs[0]):
            _fold(graph, node, namer, saturates=saturates)
    for node in list(graph.graph):
        bias = None if float_bias else bias_of(node)
        if bias is not None:
            fold_bias(graph, node, *bias, namer)
    remove_unused(graph)
    return graph


def codes_of(node: ir.Node, *, saturates: bool) -> np.ndarray | None:
    """The codes that a QuantizeLinear of a float32 constant makes; None for any other.

    `saturates`: shrink them where a product that reads them would leave 16 bits.
    """
    value, scale, zero = (constant_array(item) for item in node.inputs[:3])
    if value is None or scale is None or zero is None or value.dtype != np.float32:
        return None
    limits = np.iinfo(zero.dtype)
    low, high = int(limits.min), int(limits.max)
    if zero.dtype == np.int8 and LIMIT in node.metadata_props:
        low, high = -limit_of(node), limit_of(node)
    axis = axis_of(node) if scale.ndim else None
    codes = quantize(value, scale, int(zero.reshape(-1)[0]), low=low, high=high, dtype=str(zero.dtype), axis=axis)
    return _in_pairs(node, codes) if saturates else codes


def axis_of(node: ir.Node) -> int:
    """The axis along which a QuantizeLinear or DequantizeLinear has its scales."""
    return node.attributes["axis"].as_int() if "axis" in node.attributes else 1


def _fold(graph: ir.Model, node: ir.Node, namer: Namer, *, saturates: bool) -> None:
    codes = codes_of(node, saturates=saturates)
    if codes is None:
        return
    initializer = namer.initializer(graph, f"{node.inputs[0].name}_q", codes)  # type: ignore[union-attr]  # such a node has that input
    if LIMIT in node.metadata_props:
        initializer.metadata_props[LIMIT] = node.metadata_props[LIMIT]
    give_back(node.inputs[0].const_value)  # type: ignore[union-attr]  # such a node has that input
    node.outputs[0].replace_all_uses_with(initializer)
    graph.graph.remove(node, safe=True)


def pairs_saturate_in(graph: ir.Model) -> bool:
    """Whether the processor that this graph was quantized for adds u8·s8 products in 16 bits."""
    return wants_of(graph, "pairs_saturate")


def wants_of(graph: ir.Model, field: str) -> bool:
    """A yes-or-no of the target that this graph was quantized for; no where it names none."""
    return bool(getattr(TARGETS.get(graph.metadata_props.get(TARGET, "")), field, False))


def _in_pairs(node: ir.Node, codes: np.ndarray) -> np.ndarray:
    """Codes shrunk where a product that reads them adds in pairs."""
    for dequantize in consumers(node.outputs[0]):
        for reader in consumers(dequantize.outputs[0]):
            if has_pairs(reader) and len(reader.inputs) > 1 and reader.inputs[1] is dequantize.outputs[0]:
                codes = from_rows(reader, shrink_pairs(as_rows(reader, codes)), codes.shape)
    return codes


def _hold_biases(graph: ir.Model) -> None:
    """Raise weight scales where a bias would not fit an int32 in units of s_x · s_w."""
    for node in list(graph.graph):
        found = bias_of(node)
        if found is None:
            continue
        _, _, bias = found
        dequantize = node.inputs[1].producer()  # type: ignore[union-attr]  # such a node has that input
        quantizer = dequantize.inputs[0].producer() if dequantize is not None and dequantize.inputs[0] else None
        if dequantize is None or quantizer is None or quantizer.op_type != "QuantizeLinear":
            continue  # folded before
        scale = constant_array(quantizer.inputs[1])
        array, step = constant_array(bias), _scale_of_input(node)
        if scale is None or array is None or step is None:
            continue
        needed = scales_that_hold_bias(scale, array if scale.ndim else np.abs(array).max(), step)
        if np.any(needed > scale):
            tensor = ir.Tensor(needed, name=quantizer.inputs[1].name)  # type: ignore[union-attr]  # such a node has that input
            quantizer.inputs[1].const_value = tensor  # type: ignore[union-attr]  # such a node has that input


def bias_of(node: ir.Node) -> tuple[ir.Node, int, ir.Value] | None:
    """(node that reads it, position, value) of a float bias behind a quantized product; None where there is none."""
    if node.op_type not in ("Conv", "Gemm", "MatMul") or len(node.inputs) < 2:
        return None
    if _scale_of_input(node) is None or _weight_scale(node) is None:
        return None
    if node.op_type != "MatMul":
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        return (node, 2, bias) if bias is not None and _is_float_vector(bias) else None
    readers = consumers(node.outputs[0])
    if len(readers) != 1 or readers[0].op_type != "Add" or node.outputs[0].is_graph_output():
        return None
    for position, value in enumerate(readers[0].inputs):
        if value is not None and _is_float_vector(value):
            return readers[0], position, value
    return None


def fold_bias(graph: ir.Model, node: ir.Node, reader: ir.Node, position: int, bias: ir.Value, namer: Namer) -> None:
    """Put int32 codes behind a DequantizeLinear in the place of a float bias of `node`, which `reader` adds."""
    step, weight_scale, array = _scale_of_input(node), _weight_scale(node), constant_array(bias)
    if step is None or weight_scale is None or array is None or weight_scale.size not in (1, array.size):
        return
    scale = (np.float32(step) * weight_scale).astype(np.float32)
    codes = namer.initializer(graph, f"{bias.name}_q", quantize_bias(array, scale))
    unit = namer.initializer(graph, f"{bias.name}_scale", scale)
    dequantize = ir.node(
        "DequantizeLinear", [codes, unit], {"axis": 0} if scale.ndim else {}, name=namer(f"{bias.name}/DQ")
    )
    value = dequantize.outputs[0]
    value.name, value.dtype, value.shape = namer(f"{bias.name}_dq"), ir.DataType.FLOAT, ir.Shape(array.shape)
    graph.graph.insert_before(reader, dequantize)
    reader.replace_input_with(position, value)


def _scale_of_input(node: ir.Node) -> float | None:
    producer = node.inputs[0].producer() if node.inputs[0] is not None else None
    if producer is None or producer.op_type != "DequantizeLinear":
        return None
    scale = constant_array(producer.inputs[1])
    return float(scale.reshape(-1)[0]) if scale is not None and scale.size == 1 else None


def _weight_scale(node: ir.Node) -> np.ndarray | None:
    producer = node.inputs[1].producer() if node.inputs[1] is not None else None
    if producer is None or producer.op_type != "DequantizeLinear":
        return None
    codes, source = producer.inputs[0], producer.inputs[0].producer() if producer.inputs[0] is not None else None
    stored = is_constant(codes) or (
        source is not None and source.op_type == "QuantizeLinear" and is_constant(source.inputs[0])
    )
    return constant_array(producer.inputs[1]) if stored else None


def _is_float_vector(value: ir.Value) -> bool:
    array = constant_array(value)
    return array is not None and array.dtype == np.float32 and array.ndim == 1
