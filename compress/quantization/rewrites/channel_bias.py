"""What is added to the output channels of one layer folded into its bias, which other frameworks leave apart.

Conv(x; W, b) + c  =  Conv(x; W, b + c)               c one number, or one per output channel

The same holds for a transposed convolution, and for a Gemm whose alpha and beta are 1.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compress.graph.constants import constant_array
from compress.graph.editing import add_initializer, remove_unused
from compress.quantization.rewrites.matching import has_one_reader, is_float32, name_of, nodes, stays_float
from compress.steps import Change

LAYERS = ("Conv", "ConvTranspose", "Gemm")


def apply(graph: ir.Model) -> tuple[Change, ...]:
    """Fold, in place, every constant addition to what only one layer makes."""
    changes = [fold_addition(graph, node) for node in nodes(graph, "Add")]
    remove_unused(graph)
    return tuple(change for change in changes if change is not None)


def fold_addition(graph: ir.Model, node: ir.Node) -> Change | None:
    """Fold one Add, in place; None where there is nothing to fold it into."""
    position = next((i for i in (0, 1) if constant_array(node.inputs[i]) is not None), None)
    if position is None:
        return None
    x, addend = node.inputs[1 - position], constant_array(node.inputs[position])
    layer = layer_before(x, node)
    if layer is None or addend is None or x is None or x.shape is None or addend.ndim > len(x.shape):
        return None
    channels = channels_of(layer)
    axes = [axis + len(x.shape) - addend.ndim for axis, size in enumerate(addend.shape) if size != 1]
    if addend.size not in (1, channels) or (addend.size > 1 and axes != [1]):
        return None
    scale_and_add(graph, layer, np.ones(channels), np.broadcast_to(addend.reshape(-1), (channels,)))
    node.outputs[0].replace_all_uses_with(x)
    graph.graph.remove(node, safe=True)  # now: as a second reader it would keep what follows from folding
    return Change(name_of(node), "addition folded", f"it goes into the bias of {name_of(layer)}")


def layer_before(value: ir.Value | None, reader: ir.Node) -> ir.Node | None:
    """The layer that makes `value` for `reader` alone, with weights and a bias that are known."""
    node = value.producer() if value is not None and has_one_reader(value) else None
    if node is None or node.op_type not in LAYERS or node.domain not in ("", "ai.onnx"):
        return None
    if (
        reader.outputs[0].is_graph_output()
        or stays_float(reader) != stays_float(node)
        or not is_float32(node.inputs[1])
    ):
        return None
    if node.op_type == "Gemm" and (node.attributes.get_float("alpha", 1.0), node.attributes.get_float("beta", 1.0)) != (
        1,
        1,
    ):
        return None
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    values = constant_array(bias)
    plain = bias is None or (values is not None and values.shape == (channels_of(node),))
    return node if constant_array(node.inputs[1]) is not None and plain else None


def channels_of(layer: ir.Node) -> int:
    """How many channels a layer gives."""
    weight = constant_array(layer.inputs[1])
    if weight is None:
        return 0
    if layer.op_type == "ConvTranspose":
        return weight.shape[1] * layer.attributes.get_int("group", 1)
    if layer.op_type == "Gemm":
        return weight.shape[0 if layer.attributes.get_int("transB", 0) else 1]
    return weight.shape[0]


def scale_and_add(graph: ir.Model, layer: ir.Node, factors: np.ndarray, addend: np.ndarray) -> None:
    """W ← factors · W, b ← factors · b + addend; constants that other nodes read stay as they are."""
    weight, bias = constant_array(layer.inputs[1]), layer.inputs[2] if len(layer.inputs) > 2 else None
    values = constant_array(bias)
    if weight is None:
        return
    if np.any(factors != 1):
        scaled = (weight * _along(layer, factors, weight)).astype(np.float32)
        layer.replace_input_with(1, add_initializer(graph, str(layer.inputs[1].name), scaled))  # type: ignore[union-attr]  # a layer has weights
    total = (factors * (0.0 if values is None else values.astype(np.float64)) + addend).astype(np.float32)
    name = str(bias.name) if bias is not None else f"{name_of(layer)}_bias"
    if len(layer.inputs) < 3:
        layer.resize_inputs(3)
    layer.replace_input_with(2, add_initializer(graph, name, total))


def _along(layer: ir.Node, factors: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The factors in a shape that broadcasts to the weight."""
    rest = [1] * (weight.ndim - 2)
    if layer.op_type == "ConvTranspose":  # (inputs, outputs of a group, kernel); a group's inputs make its own outputs
        rows = factors.reshape(layer.attributes.get_int("group", 1), -1)
        return np.repeat(rows, weight.shape[0] // len(rows), axis=0).reshape(weight.shape[0], -1, *rest)
    if layer.op_type == "Gemm" and not layer.attributes.get_int("transB", 0):
        return factors[None, :]
    return factors.reshape(-1, 1, *rest)
