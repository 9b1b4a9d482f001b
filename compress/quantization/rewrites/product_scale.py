"""A number behind a product of two computed tensors, moved in front (attention's scale).

    c · (a·b)  =  (c·a)·b  =  a·(c·b)              a·b a MatMul, c one number, Div(·, d) = Mul(·, 1/d)

In front it multiplies the smaller operand, of L·64 numbers instead of L·L, and there it costs nothing: `scalars.py`
folds it into the weights that made the operand, or where these make more than the operand (q, k, v from one layer)
the scale of the operand's codes carries it (`rescaling.py`).
"""

from __future__ import annotations

import math

import onnx_ir as ir

from compress.graph.constants import constant_array
from compress.quantization.rewrites.matching import (
    Replacement,
    has_one_reader,
    is_float32,
    name_of,
    nodes,
    number,
    produced_by,
    why_float,
    with_number,
)
from compress.steps import Change

ACTION = "moved in front of the product"


def apply(graph: ir.Model) -> tuple[Change, ...]:
    """Move, in place, every number that multiplies or divides the product of two computed tensors."""
    changes = [_move(graph, node) for node in nodes(graph, "Mul", "Div")]
    return tuple(change for change in changes if change is not None)


def _move(graph: ir.Model, node: ir.Node) -> Change | None:
    found = _scaled(node)
    product = produced_by(found[0], "MatMul") if found is not None else None
    if found is None or product is None or any(constant_array(value) is not None for value in product.inputs):
        return None  # weights take the number by themselves
    x, factor = found
    name, reason = name_of(node), _reason_against(node, x)
    if reason:
        return Change(name, ACTION, reason, skipped=True)
    position = min((0, 1), key=lambda index: _elements(product.inputs[index]))
    operand = product.inputs[position]
    new = Replacement(graph, node)
    product.replace_input_with(position, new.op("Mul", operand, new.constant("factor", factor), like=operand))
    new.insert_before(product)
    node.outputs[0].replace_all_uses_with(x)
    graph.graph.remove(node, safe=True)
    return Change(name, ACTION, f"{factor:g} multiplies operand {position} of {name_of(product)}")


def _scaled(node: ir.Node) -> tuple[ir.Value, float] | None:
    """(x, c) where `node` computes c·x."""
    if node.op_type == "Mul":
        return with_number(node)
    divisor, x = number(node.inputs[1]), node.inputs[0]
    return (x, 1 / divisor) if divisor and x is not None else None


def _reason_against(node: ir.Node, product: ir.Value) -> str:
    if not is_float32(product):
        return "the product is not float32"
    if not has_one_reader(product):
        return "the product is read elsewhere too"
    if node.outputs[0].is_graph_output():
        return "the result is an output of the graph"
    if product.shape is None or any(
        value.shape is not None and len(value.shape) > len(product.shape) for value in node.inputs if value is not None
    ):
        return "the number may give the product more dimensions"
    return why_float(node, product)


def _elements(value: ir.Value | None) -> float:
    """Numbers in one sample, as far as the shape is known."""
    if value is None or value.shape is None:
        return math.inf
    return math.prod(size for size in value.shape if isinstance(size, int))
