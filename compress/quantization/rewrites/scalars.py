"""Multiplications by one number folded into the weights before or behind them.

    Div(x, c)                 =  Mul(x, 1/c)
    Mul(Conv(x; W, b), c)     =  Conv(x; c·W, c·b)              likewise Gemm, MatMul, and an Add of a constant between
    Conv(Mul(x, c); W, b)     =  Conv(x; c·W, b)                likewise Gemm, MatMul, ConvTranspose
    f(c·x)                    =  c·f(x)     for f linear:       pools, means, data movement, Mul with another tensor;
                                            for c > 0:          Relu, LeakyRelu, PRelu, MaxPool

so a factor walks forward, through every reader, until weights take it up on each path, or backward to the one node that
made the tensor. Where some path ends elsewhere (the graph's output, an Add of two tensors, a softmax), nothing changes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from compress.graph.constants import constant_array
from compress.graph.editing import add_initializer, remove_unused
from compress.quantization.rewrites.matching import (
    Replacement,
    has_one_reader,
    is_float32,
    name_of,
    nodes,
    number,
    produced_by,
    with_number,
)
from compress.steps import Change

ACTION = "scalar folded"
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_LINEAR = frozenset(
    [
        "AveragePool",
        "DepthToSpace",
        "Expand",
        "Flatten",
        "Gather",
        "GlobalAveragePool",
        "Identity",
        "ReduceMean",
        "ReduceSum",
        "Reshape",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    ]
)
_LINEAR_WHEN_POSITIVE = frozenset({"LeakyRelu", "MaxPool", "GlobalMaxPool", "PRelu", "Relu"})
_MOVES_BACK = frozenset(["Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"])
_LIMIT = 64  # nodes that one factor may walk through


class Refused(Exception):
    """Why a factor cannot be folded; never leaves this file."""


@dataclass
class _Plan:
    """What takes up the factor: (node, position of its weight), and constants that are scaled along."""

    factor: float
    weights: dict[ir.Node, int] = field(default_factory=dict)
    constants: list[tuple[ir.Node, int]] = field(default_factory=list)
    passed: set[ir.Node] = field(default_factory=set)


def apply(graph: ir.Model) -> tuple[Change, ...]:
    """Fold, in place, every scalar multiplication that weights can take up."""
    for node in nodes(graph, "Div"):
        _turn_division(graph, node)
    changes = [_fold(graph, node) for node in nodes(graph, "Mul")]
    remove_unused(graph)
    return tuple(change for change in changes if change is not None)


def _turn_division(graph: ir.Model, node: ir.Node) -> None:
    divisor, x = number(node.inputs[1]), node.inputs[0]
    if not divisor or x is None or not is_float32(x) or constant_array(x) is not None:
        return
    if _rank(node.inputs[1]) > _rank(x):
        return
    new = Replacement(graph, node)
    new.finish(new.op("Mul", x, new.constant("reciprocal", 1 / divisor), like=x))


def _rank(value: ir.Value | None) -> int:
    return 0 if value is None or value.shape is None else len(value.shape)


def _fold(graph: ir.Model, node: ir.Node) -> Change | None:
    found = with_number(node)
    if found is None or node.graph is None or not is_float32(found[0]):
        return None
    x, factor = found
    constant = next(value for value in node.inputs if value is not x)
    if x.shape is not None and _rank(constant) > _rank(x):
        return None
    name = name_of(node)
    reasons = []
    for direction in (_backward, _forward):
        plan = _Plan(factor)
        try:
            direction(node, x, plan)
        except Refused as refusal:
            reasons.append(str(refusal))
            continue
        _carry_out(graph, plan)
        output = node.outputs[0]
        if output.is_graph_output():
            _take_over_output(graph, node, x)
        else:
            output.replace_all_uses_with(x)
        where = ", ".join(name_of(item) for item in plan.weights)
        return Change(name, ACTION, f"{factor:g} goes into the weights of {where}", values={"factor": factor})
    return Change(name, ACTION, "; ".join(dict.fromkeys(reasons)), skipped=True, values={"factor": factor})


def _take_over_output(graph: ir.Model, node: ir.Node, x: ir.Value) -> None:
    new = Replacement(graph, node)
    new.finish(new.op("Identity", x, like=x))


# --- backward: the one node that made the tensor takes the factor ---


def _backward(node: ir.Node, x: ir.Value, plan: _Plan) -> None:
    value: ir.Value | None = x
    while True:
        if value is None or not has_one_reader(value):
            raise Refused("the tensor is read elsewhere too")
        maker = value.producer()
        if maker is None:
            raise Refused("it scales an input of the graph")
        if maker.op_type in _MOVES_BACK and maker.domain == "":
            value = maker.inputs[0]
            continue
        added = _added_constant(maker)
        if added is not None:
            plan.constants.append((maker, 1 - added))
            value = maker.inputs[added]
            continue
        _absorb_output(maker, plan)
        return


def _added_constant(node: ir.Node) -> int | None:
    """Position of the operand that varies, where the other one is constant."""
    if produced_by(node.outputs[0], "Add") is None:
        return None
    known = [constant_array(value) is not None for value in node.inputs]
    return known.index(False) if known.count(True) == 1 else None


def _absorb_output(node: ir.Node, plan: _Plan) -> None:
    position = _weight_position(node, None)
    if position is None:
        raise Refused(f"{node.op_type} before it has no weights")
    plan.weights[node] = position
    if node.op_type != "MatMul" and len(node.inputs) > 2 and node.inputs[2] is not None:
        if constant_array(node.inputs[2]) is None:
            raise Refused(f"the bias of {name_of(node)} is computed")
        plan.constants.append((node, 2))


def _weight_position(node: ir.Node, activation: ir.Value | None) -> int | None:
    """Where the constant weight of a weighted node stands; `activation`, where given, must be its other operand."""
    if node.op_type not in _WEIGHTED or node.domain != "":
        return None
    for position in (1, 0) if node.op_type in ("Gemm", "MatMul") else (1,):
        other = node.inputs[1 - position]
        if constant_array(node.inputs[position]) is not None and (activation is None or other is activation):
            return position
    return None


# --- forward: every reader's weights take the factor ---


def _forward(node: ir.Node, x: ir.Value, plan: _Plan) -> None:
    _walk(node.outputs[0], plan)


def _walk(value: ir.Value, plan: _Plan) -> None:
    if value.is_graph_output():
        raise Refused("the result is an output of the graph")
    for reader, position in value.uses():
        _pass(reader, position, value, plan)


def _pass(reader: ir.Node, position: int, value: ir.Value, plan: _Plan) -> None:
    if reader in plan.passed or reader in plan.weights or len(plan.passed) > _LIMIT:
        raise Refused(f"{name_of(reader)} meets the factor twice")
    if reader.op_type in _WEIGHTED:
        weight = _weight_position(reader, value)
        if weight is None:
            raise Refused(f"{name_of(reader)} multiplies two computed tensors")
        plan.weights[reader] = weight
        return
    plan.passed.add(reader)
    multiplied = reader.op_type == "Mul" and reader.domain == ""
    moved = reader.op_type in _LINEAR or (reader.op_type in _LINEAR_WHEN_POSITIVE and plan.factor > 0)
    if not multiplied and not (moved and position == 0 and reader.domain == ""):
        raise Refused(f"{name_of(reader)} ({reader.op_type}) is not linear in it")
    for output in reader.outputs:
        _walk(output, plan)


# --- carrying a plan out ---


def _carry_out(graph: ir.Model, plan: _Plan) -> None:
    for node, position in (*plan.weights.items(), *plan.constants):
        scale_constant(graph, node, position, plan.factor)


def scale_constant(graph: ir.Model, node: ir.Node, position: int, factor: float | np.ndarray) -> None:
    """Give `node` its own constant at `position`, multiplied; other readers keep the old one."""
    old = node.inputs[position]
    array = constant_array(old)
    if old is None or array is None:
        raise ValueError(f"input {position} of {name_of(node)} is not constant")
    scaled = (array.astype(np.float64) * factor).astype(array.dtype)
    node.replace_input_with(position, add_initializer(graph, f"{old.name}_scaled", scaled))
