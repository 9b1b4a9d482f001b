"""SiLU (Swish) as x · sigmoid(β·x), the two factors of which have int8 kernels.

    Swish(x; β) = x · σ(β·x)            SiLU = Swish with β = 1
    x / (1 + exp(−x))  =  x · σ(x)      1 / (1 + exp(−x))  =  σ(x)

The int8 sigmoid is a table of 256 entries; the multiplication has a kernel of its own.
"""

from __future__ import annotations

import onnx_ir as ir

from compress.graph.editing import remove_unused
from compress.quantization.rewrites.matching import (
    Replacement,
    close,
    is_float32,
    name_of,
    nodes,
    number,
    produced_by,
    why_float,
    with_number,
)
from compress.steps import Change

ACTION = "written as x · sigmoid(β·x)"


def apply(graph: ir.Model) -> tuple[Change, ...]:
    """Rewrite, in place, Swish, QuickGelu and hand-written sigmoids."""
    changes = [_written_out(graph, node) for node in nodes(graph, "Div")]
    changes += [_one_node(graph, node) for node in list(graph.graph) if _is_swish(node)]
    remove_unused(graph)
    return tuple(change for change in changes if change is not None)


def _is_swish(node: ir.Node) -> bool:
    return (node.domain in ("", "ai.onnx") and node.op_type == "Swish") or (
        node.domain == "com.microsoft" and node.op_type == "QuickGelu"
    )


def _one_node(graph: ir.Model, node: ir.Node) -> Change:
    x, name = node.inputs[0], name_of(node)
    beta = node.attributes.get_float("alpha", 1.702 if node.op_type == "QuickGelu" else 1.0)
    if x is None or not is_float32(x):
        return Change(name, ACTION, "its input is not float32", skipped=True)
    if kept := why_float(node, x):
        return Change(name, ACTION, kept, skipped=True)
    new = Replacement(graph, node)
    scaled = x if beta == 1.0 else new.op("Mul", x, new.constant("beta", beta), like=x)
    new.finish(new.op("Mul", x, new.op("Sigmoid", scaled, like=x), like=x))
    return Change(name, ACTION, f"β = {beta:g}")


def _written_out(graph: ir.Model, node: ir.Node) -> Change | None:
    numerator = node.inputs[0]
    x = _exponent(node.inputs[1])
    if x is None or numerator is None or not is_float32(x):
        return None
    name = name_of(node)
    new = Replacement(graph, node)
    sigmoid = new.op("Sigmoid", x, like=x)
    if close(number(numerator), 1.0):
        new.finish(sigmoid)
        return Change(name, "written as sigmoid(x)", "1 / (1 + exp(−x))")
    new.finish(new.op("Mul", numerator, sigmoid, like=x))
    return Change(name, ACTION, "x / (1 + exp(−x))")


def _exponent(value: ir.Value | None) -> ir.Value | None:
    """x, where `value` is 1 + exp(−x)."""
    added = with_number(produced_by(value, "Add"))
    if added is None or not close(added[1], 1.0):
        return None
    power = produced_by(added[0], "Exp")
    if power is None:
        return None
    negated = produced_by(power.inputs[0], "Neg")
    if negated is not None:
        return negated.inputs[0]
    scaled = with_number(produced_by(power.inputs[0], "Mul"))
    return scaled[0] if scaled is not None and close(scaled[1], -1.0) else None
