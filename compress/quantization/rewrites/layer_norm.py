"""Layer normalization written out in many nodes as the one LayerNormalization.

    d = x − mean(x),  v = mean(d²),  y = d / √(v + ε) · γ + β        over the last axes, keepdims = 1
      = LayerNormalization(x, γ, β; ε)

d² may be written Pow(d, 2) or Mul(d, d), the quotient as Div or as a product with Reciprocal(Sqrt(·)).
"""

from __future__ import annotations

import onnx_ir as ir

from compress.graph.constants import constant_array
from compress.graph.editing import remove_unused
from compress.quantization.rewrites.matching import (
    Replacement,
    is_float32,
    is_power,
    name_of,
    nodes,
    other_operand,
    produced_by,
    with_number,
)
from compress.steps import Change

ACTION = "written as LayerNormalization"
OPSET = 17  # LayerNormalization is a standard operator from here on


def apply(graph: ir.Model) -> tuple[Change, ...]:
    """Rewrite, in place, every written-out layer normalization with constant γ and β."""
    changes = []
    for node in nodes(graph, "Add"):
        found = _match(node)
        if found is None:
            continue
        x, axis, epsilon, gamma, beta = found
        name = name_of(node)
        if graph.opset_imports.get("", 0) < OPSET:
            reason = f"the file's opset {graph.opset_imports.get('')} has no LayerNormalization"
            changes.append(Change(name, ACTION, reason, skipped=True))
            continue
        new = Replacement(graph, node)
        new.finish(new.op("LayerNormalization", x, gamma, beta, like=x, axis=axis, epsilon=epsilon))
        changes.append(Change(name, ACTION, f"over the last {-axis} axes" if axis < -1 else "over the last axis"))
    remove_unused(graph)
    return tuple(changes)


def _match(node: ir.Node) -> tuple[ir.Value, int, float, ir.Value, ir.Value] | None:
    """(x, axis, ε, γ, β) where `node` ends a written-out layer normalization."""
    for beta in node.inputs:
        product = produced_by(other_operand(node, beta), "Mul")
        if beta is None or constant_array(beta) is None or product is None:
            continue
        for gamma in product.inputs:
            if gamma is None or constant_array(gamma) is None:
                continue
            found = _normalized(other_operand(product, gamma))
            if found is None:
                continue
            x, axis, epsilon = found
            sizes = None if x.shape is None else list(x.shape)[axis:]
            if sizes is not None and list(gamma.shape or ()) == sizes == list(beta.shape or ()) and is_float32(x):
                return x, axis, epsilon, gamma, beta
    return None


def _normalized(value: ir.Value | None) -> tuple[ir.Value, int, float] | None:
    """(x, axis, ε) where `value` is (x − mean) / √(variance + ε)."""
    divided = produced_by(value, "Div")
    if divided is not None:
        deviation, root = divided.inputs
        return _statistics(deviation, root)
    product = produced_by(value, "Mul")
    if product is None:
        return None
    for factor in product.inputs:
        inverse = produced_by(factor, "Reciprocal")
        if inverse is not None:
            return _statistics(other_operand(product, factor), inverse.inputs[0])
    return None


def _statistics(deviation: ir.Value | None, root: ir.Value | None) -> tuple[ir.Value, int, float] | None:
    centred, square_root = produced_by(deviation, "Sub"), produced_by(root, "Sqrt")
    if deviation is None or centred is None or square_root is None:
        return None
    x, mean = centred.inputs
    axes = _mean_axes(mean, x)
    added = with_number(produced_by(square_root.inputs[0], "Add"))
    if x is None or axes is None or added is None:
        return None
    variance = produced_by(added[0], "ReduceMean")
    square = variance.inputs[0] if variance is not None else None
    if not is_power(square, deviation, 2) or _mean_axes(added[0], square) != axes:
        return None
    return x, axes, added[1]


def _mean_axes(value: ir.Value | None, x: ir.Value | None) -> int | None:
    """The first of the last axes (negative) over which `value` is the mean of `x`."""
    node = produced_by(value, "ReduceMean")
    if node is None or node.inputs[0] is not x or x is None or x.shape is None:
        return None
    axes = node.attributes.get_ints("axes", ()) if "axes" in node.attributes else None
    if axes is None:
        array = constant_array(node.inputs[1]) if len(node.inputs) > 1 else None
        axes = [] if array is None else [int(axis) for axis in array]
    rank = len(x.shape)
    normal = sorted(axis % rank for axis in axes)
    if not normal or normal != list(range(normal[0], rank)) or not node.attributes.get_int("keepdims", 1):
        return None
    return normal[0] - rank
