"""Per-channel factors behind a linear layer folded into its weights (layer scale).

Conv(x; W, b) · g      =  Conv(x; g·W, g·b)                 g one number per output channel
(x·W + b) · g          =  x·(W·g) + b·g                     MatMul with an Add, or Gemm
Transpose(y) · gᵀ      =  Transpose(y · g)                  g moved to the axis that it had before
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compress.graph.constants import constant_array
from compress.graph.editing import remove_unused
from compress.quantization.rewrites.matching import has_one_reader, is_float32, name_of, nodes, produced_by
from compress.quantization.rewrites.scalars import scale_constant
from compress.steps import Change

ACTION = "per-channel factor folded"


def apply(graph: ir.Model) -> tuple[Change, ...]:
    """Fold, in place, every constant vector that multiplies the output channels of one linear layer."""
    changes = [_fold(graph, node) for node in nodes(graph, "Mul")]
    remove_unused(graph)
    return tuple(change for change in changes if change is not None)


def _fold(graph: ir.Model, node: ir.Node) -> Change | None:
    position = next((i for i in (0, 1) if constant_array(node.inputs[i]) is not None), None)
    if position is None or node.outputs[0].is_graph_output() or not is_float32(node.outputs[0]):
        return None
    x, factors = node.inputs[1 - position], constant_array(node.inputs[position])
    if x is None or factors is None or x.shape is None or factors.size == 1 or factors.ndim > len(x.shape):
        return None
    axes = [axis + len(x.shape) - factors.ndim for axis, size in enumerate(factors.shape) if size != 1]
    if len(axes) != 1:
        return None
    name = name_of(node)
    made = _maker(x, axes[0])
    if isinstance(made, str):
        return Change(name, ACTION, made, skipped=True)
    linear, addition = made
    _scale(graph, linear, addition, factors.reshape(-1))
    node.outputs[0].replace_all_uses_with(x)
    return Change(name, ACTION, f"{factors.size} factors go into the weights of {name_of(linear)}")


def _maker(value: ir.Value, axis: int) -> tuple[ir.Node, ir.Node | None] | str:
    """The linear layer whose output channels lie along `axis` of `value`, and the Add of its bias; or why not."""
    addition = None
    while has_one_reader(value):
        node = value.producer()
        if node is None or value.shape is None or node.domain != "":
            return "no linear layer is before it"
        if produced_by(value, "Transpose") is not None:
            order = node.attributes.get_ints("perm", tuple(reversed(range(len(value.shape)))))
            axis = order[axis]
        elif addition is None and produced_by(value, "Add") is not None:
            known = [constant_array(item) for item in node.inputs]
            if (known[0] is None) == (known[1] is None):
                return "an addition of two tensors is before it"
            bias = known[0] if known[0] is not None else known[1]
            if bias is None or bias.ndim != 1 or axis != len(value.shape) - 1:
                return "the addition before it is not of one number per channel"
            addition = node
            value = _varying(node)
            continue
        elif axis == _output_axis(node, value):
            return (node, addition) if constant_array(node.inputs[1]) is not None else "the weights are computed"
        else:
            return f"{node.op_type} is before it"
        value = node.inputs[0] if node.inputs[0] is not None else value
    return "the tensor before it is read elsewhere too"


def _varying(addition: ir.Node) -> ir.Value:
    return next(item for item in addition.inputs if item is not None and constant_array(item) is None)


def _output_axis(node: ir.Node, value: ir.Value) -> int | None:
    if value.shape is None:
        return None
    if node.op_type == "Conv":
        return 1
    return len(value.shape) - 1 if node.op_type in ("Gemm", "MatMul") else None


def _scale(graph: ir.Model, linear: ir.Node, addition: ir.Node | None, factors: np.ndarray) -> None:
    weight = constant_array(linear.inputs[1])
    if weight is None:
        raise ValueError(f"the weight of {name_of(linear)} is not constant")
    rows = linear.op_type == "Conv" or (linear.op_type == "Gemm" and linear.attributes.get_int("transB", 0) != 0)
    shape = (-1, *([1] * (weight.ndim - 1))) if rows else (-1,)
    scale_constant(graph, linear, 1, factors.reshape(shape))
    if linear.op_type != "MatMul" and len(linear.inputs) > 2 and linear.inputs[2] is not None:
        scale_constant(graph, linear, 2, factors)
    if addition is not None:
        scale_constant(graph, addition, 1 if constant_array(addition.inputs[1]) is not None else 0, factors)
