"""GELU written out in many nodes as the one Gelu operator, a single pass in float.

    Gelu(x)       = x · (1 + erf(x/√2)) / 2
    Gelu(x, tanh) = x · (1 + tanh(√(2/π) · (x + 0.044715·x³))) / 2

GELU has no int8 kernel. Through int8 factors (a table for the sigmoid of its argument) x³ would lose most of its bits,
so the cheapest exact form is one float node between integer matrix products: ONNX Runtime takes the product's int32 sums
to float and adds the bias in the same pass. The half may stand on x, on the sum or on the product.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from compress.graph.editing import remove_unused
from compress.quantization.rewrites.matching import (
    Replacement,
    close,
    is_float32,
    is_power,
    name_of,
    nodes,
    number,
    other_operand,
    produced_by,
    with_number,
)
from compress.steps import Change

ACTION = "written as one Gelu"
OPSET = 20  # Gelu is a standard operator from here on


def apply(graph: ir.Model) -> tuple[Change, ...]:
    """Rewrite, in place, the erf and tanh forms of GELU."""
    changes: list[Change] = []
    for node in nodes(graph, "Mul", "Div"):
        if node.graph is None or not is_float32(node.outputs[0]):
            continue
        found = _match(node)
        if found is None:
            continue
        x, form = found
        name = name_of(node)
        if graph.opset_imports.get("", 0) < OPSET:
            reason = f"the file's opset {graph.opset_imports.get('')} has no Gelu; ONNX Runtime fuses the nodes itself"
            changes.append(Change(name, ACTION, reason, skipped=True))
            continue
        new = Replacement(graph, node)
        new.finish(new.op("Gelu", x, like=x, approximate=form))
        changes.append(Change(name, ACTION, f"{'erf' if form == 'none' else form} form"))
    remove_unused(graph)
    return tuple(changes)


def _match(node: ir.Node) -> tuple[ir.Value, str] | None:
    """(x, the form) where `node` ends a written-out GELU: the product of x, a half and 1 + f(x), in any order."""
    factors = _factors(node.outputs[0], depth=3)
    scale = math.prod(factor for factor in factors if isinstance(factor, float))
    values = [factor for factor in factors if isinstance(factor, ir.Value)]
    if len(values) != 2:
        return None
    for x, gate in (values, values[::-1]):
        inner, half = _gate(gate)
        if inner is None or not close(scale * half, 0.5):
            continue
        form = "none" if _is_erf(inner, x) else "tanh" if _is_tanh(inner, x) else None
        if form is not None:
            return x, form
    return None


def _factors(value: ir.Value | None, depth: int) -> list[ir.Value | float]:
    """The factors of a product of products, numbers as floats; a quotient by a number counts as a factor."""
    found = number(value)
    if found is not None:
        return [found]
    if value is None:
        return []
    node = produced_by(value, "Mul", "Div")
    if node is None or depth == 0:
        return [value]
    if node.op_type == "Div":
        divisor = number(node.inputs[1])
        return [value] if not divisor else [*_factors(node.inputs[0], depth - 1), 1 / divisor]
    return [factor for item in node.inputs for factor in _factors(item, depth - 1)]


def _gate(value: ir.Value) -> tuple[ir.Value | None, float]:
    """(f, c) where `value` is c·(1 + f), as 1 + f or as 0.5 + 0.5·f."""
    added = with_number(produced_by(value, "Add"))
    if added is None:
        return None, 0.0
    if close(added[1], 1.0):
        return added[0], 1.0
    halved = with_number(produced_by(added[0], "Mul"))
    return (halved[0], 0.5) if halved and close(added[1], 0.5) and close(halved[1], 0.5) else (None, 0.0)


def _is_erf(value: ir.Value, x: ir.Value) -> bool:
    node = produced_by(value, "Erf")
    return node is not None and _scaled(node.inputs[0], x, math.sqrt(0.5))


def _scaled(value: ir.Value | None, x: ir.Value, factor: float) -> bool:
    """Whether `value` is factor·x."""
    divided = produced_by(value, "Div")
    if divided is not None:
        divisor = number(divided.inputs[1])
        return divided.inputs[0] is x and bool(divisor) and close(1 / (divisor or 1.0), factor)
    found = with_number(produced_by(value, "Mul"))
    return found is not None and found[0] is x and close(found[1], factor)


def _is_tanh(value: ir.Value, x: ir.Value) -> bool:
    node = produced_by(value, "Tanh")
    found = with_number(produced_by(node.inputs[0], "Mul")) if node is not None else None
    if found is None or not close(found[1], math.sqrt(2 / math.pi)):
        return False
    added = produced_by(found[0], "Add")
    cubic = other_operand(added, x) if added is not None else None
    term = with_number(produced_by(cubic, "Mul"))
    return term is not None and close(term[1], 0.044715) and is_power(term[0], x, 3)
