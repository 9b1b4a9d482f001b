"""What ONNX Runtime's int8 kernels take: which operators, on which of their inputs.

heavy    Conv, MatMul, Gemm                      where the time goes; always worth int8
light    Add, Mul, Sigmoid, Concat, pools, …     worth it between two others, so that nothing leaves int8
moving   Reshape, Transpose, MaxPool, …          only move (or pick) values: they share their input's grid
clips    Relu, Clip                              disappear: the range of the tensor before them does their work
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from compress.graph.constants import constant_array, is_constant
from compress.quantization.arithmetic import too_small

HEAVY = frozenset({"Conv", "Gemm", "MatMul"})
STORED = frozenset({"ConvTranspose"})  # no int8 kernel: weights are stored in int8, the sum runs in float
LIGHT = frozenset(
    {"Add", "AveragePool", "Concat", "GlobalAveragePool", "LeakyRelu", "Mul", "Sigmoid", "Softmax", "Where"}
)
MOVING = frozenset(
    {"DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "MaxPool", "Pad", "Reshape", "Resize", "Slice"}
    | {"SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"}
)
CLIPS = frozenset({"Clip", "Relu"})
# In int8 only when asked for: eight bits are few for attention's logits, and the float kernel is not slow.
ON_REQUEST = frozenset({"Softmax"})
QUANTIZABLE = HEAVY | STORED | LIGHT
_TWO_INPUTS = frozenset({"Add", "MatMul", "Mul"})


def activation_inputs(node: ir.Node) -> tuple[int, ...]:
    """Positions of the inputs that carry activations (or constants in their place), not weights or shapes."""
    if node.op_type == "Concat":
        return tuple(range(len(node.inputs)))
    if node.op_type == "Where":
        return (1, 2)
    if node.op_type == "MatMul" and has_weight(node):
        return (0,)
    return (0, 1) if node.op_type in _TWO_INPUTS else (0,)


def has_weight(node: ir.Node) -> bool:
    return node.op_type in HEAVY | STORED and len(node.inputs) > 1 and is_constant(node.inputs[1])


def refusal(node: ir.Node) -> str:
    """Why this operator's int8 kernel cannot take this node; empty where it can."""
    if node.domain not in ("", "ai.onnx"):
        return f"{node.domain}.{node.op_type} has no int8 kernel"
    check = _CHECKS.get(node.op_type)
    if check is not None:
        return check(node)
    return "" if node.op_type in QUANTIZABLE | MOVING else f"{node.op_type} has no int8 kernel"


def _refuse_convolution(node: ir.Node) -> str:
    return _refuse_weight(node.inputs[1])


def _refuse_gemm(node: ir.Node) -> str:
    if number(node, "alpha", 1.0) != 1.0 or number(node, "beta", 1.0) != 1.0 or number(node, "transA", 0):
        return "Gemm with alpha, beta or transA has no int8 kernel"
    if reason := _refuse_weight(node.inputs[1]):
        return reason
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None and (not is_constant(bias) or bias.shape is None or len(bias.shape) != 1):
        return "its bias is computed at run time, or is not one number for each output"
    return ""


def _refuse_matmul(node: ir.Node) -> str:
    if not has_weight(node):
        return ""
    weight = node.inputs[1]
    if not _float_constant(weight):
        return "its weight is not float32"
    if weight is None or weight.shape is None or len(weight.shape) < 2:
        return "its weight is a vector"
    return _refuse_weight(weight)


def _refuse_maxpool(node: ir.Node) -> str:
    return "its indices are used" if len(node.outputs) > 1 and node.outputs[1].uses() else ""


def _refuse_resize(node: ir.Node) -> str:
    mode = node.attributes["mode"].as_string() if "mode" in node.attributes else "nearest"
    return "" if mode == "nearest" else f"Resize in mode {mode!r} has no int8 kernel that rounds"


def _refuse_pad(node: ir.Node) -> str:
    mode = node.attributes["mode"].as_string() if "mode" in node.attributes else "constant"
    value = node.inputs[2] if len(node.inputs) > 2 else None
    if mode != "constant" or value is None:
        return ""
    array = constant_array(value)
    return "" if array is not None and not np.any(array) else "it pads with a number other than zero"


def _refuse_concat(node: ir.Node) -> str:
    return "" if len(node.inputs) > 1 else "it has one input"


_CHECKS = {
    "Conv": _refuse_convolution,
    "ConvTranspose": _refuse_convolution,
    "Gemm": _refuse_gemm,
    "MatMul": _refuse_matmul,
    "MaxPool": _refuse_maxpool,
    "Resize": _refuse_resize,
    "Pad": _refuse_pad,
    "Concat": _refuse_concat,
}


def clip_bounds(node: ir.Node) -> tuple[float, float] | None:
    """What a Relu or Clip limits to; None where its bounds are computed at run time."""
    if node.op_type == "Relu":
        return 0.0, math.inf
    bounds = []
    for position, missing in ((1, -math.inf), (2, math.inf)):
        value = node.inputs[position] if len(node.inputs) > position else None
        array = constant_array(value) if value is not None else np.asarray(missing)
        if array is None:
            return None
        bounds.append(float(array.reshape(())))
    return bounds[0], bounds[1]


def weight_axis(node: ir.Node) -> int | None:
    """The axis of a weight along which the outputs lie; None where its kernel takes one scale only."""
    weight = node.inputs[1]
    rank = len(weight.shape) if weight is not None and weight.shape is not None else 0
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1
    if node.op_type == "Gemm":
        return 0 if number(node, "transB", 0) else 1
    return 1 if rank == 2 else None


def is_depthwise(node: ir.Node) -> bool:
    """One input channel to one output channel, in two dimensions: a kernel of its own, which adds in 32 bits."""
    weight = node.inputs[1] if node.op_type == "Conv" else None
    if weight is None or weight.shape is None or len(weight.shape) != 4:
        return False
    return weight.shape[1] == 1 and weight.shape[0] == number(node, "group", 1) and weight.shape[0] != 1


def number(node: ir.Node, name: str, default: float) -> float:
    """A numeric attribute, or its default."""
    return node.attributes[name].value if name in node.attributes else default


def _refuse_weight(value: ir.Value | None) -> str:
    array = constant_array(value) if _float_constant(value) else None
    if array is None:
        return "its weight is computed at run time, or is not float32"
    return too_small(array)


def _float_constant(value: ir.Value | None) -> bool:
    return value is not None and is_constant(value) and value.dtype == ir.DataType.FLOAT
