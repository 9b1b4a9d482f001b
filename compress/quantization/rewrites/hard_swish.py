"""HardSwish, HardSigmoid as a clipped addition whose clip an int8 range performs.

    HardSigmoid(x; α, β) = clip(α·x + β, 0, 1)  =  clip(x + β/α, 0, 1/α) · α        (α > 0)
    HardSwish(x)         = x · clip(x + 3, 0, 6) / 6  =  (x · clip(x + 3, 0, 6)) · 1/6

Neither has an int8 kernel. The right-hand sides have: an int8 addition whose output range *is* the clip, an int8
multiplication, and a scalar that `scalars.py` folds into a neighbour or that a scale carries. Written out by hand
(`x * relu6(x + 3) / 6`, the division anywhere, a HardSigmoid times x), they are brought to the same form.
"""

from __future__ import annotations

import onnx_ir as ir

from compress.graph.editing import remove_unused
from compress.quantization.kernels import clip_bounds
from compress.quantization.rewrites.matching import (
    Replacement,
    close,
    has_one_reader,
    is_float32,
    name_of,
    nodes,
    number,
    other_operand,
    produced_by,
    why_float,
    with_number,
)
from compress.steps import Change

ACTION = "written as a clipped addition"


def apply(graph: ir.Model) -> tuple[Change, ...]:
    """Rewrite, in place, every HardSwish, HardSigmoid and hand-written hard swish."""
    changes = [_hand_written(graph, node) for node in nodes(graph, "Mul", "Div")]
    remove_unused(graph)  # the HardSigmoid of a hand-written hard swish
    changes += [_hard_swish(graph, node) for node in nodes(graph, "HardSwish")]
    changes += [_hard_sigmoid(graph, node) for node in nodes(graph, "HardSigmoid")]
    remove_unused(graph)
    return tuple(change for change in changes if change is not None)


def _hard_swish(graph: ir.Model, node: ir.Node) -> Change:
    x = node.inputs[0]
    if x is None or not is_float32(x):
        return Change(name_of(node), ACTION, "its input is not float32", skipped=True)
    return _write_hard_swish(graph, node, x)


def _write_hard_swish(graph: ir.Model, node: ir.Node, x: ir.Value) -> Change:
    name, kept = name_of(node), why_float(node, x)
    if kept:
        return Change(name, ACTION, kept, skipped=True)
    new = Replacement(graph, node)
    product = new.op("Mul", x, _clipped(new, x, 3.0, 6.0), like=x)
    new.finish(new.op("Mul", product, new.constant("sixth", 1 / 6), like=x))
    return Change(name, ACTION, "x · clip(x + 3, 0, 6) · 1/6")


def _hard_sigmoid(graph: ir.Model, node: ir.Node) -> Change:
    x, name = node.inputs[0], name_of(node)
    alpha, beta = node.attributes.get_float("alpha", 0.2), node.attributes.get_float("beta", 0.5)
    if x is None or not is_float32(x):
        return Change(name, ACTION, "its input is not float32", skipped=True)
    if alpha <= 0:
        return Change(name, ACTION, f"its slope alpha is {alpha:g}; only a rising one is a clip", skipped=True)
    if kept := why_float(node, x):
        return Change(name, ACTION, kept, skipped=True)
    new = Replacement(graph, node)
    clipped = _clipped(new, x, beta / alpha, 1 / alpha)
    new.finish(new.op("Mul", clipped, new.constant("alpha", alpha), like=x))
    return Change(name, ACTION, f"clip(x + {beta / alpha:g}, 0, {1 / alpha:g}) · {alpha:g}")


def _clipped(new: Replacement, x: ir.Value, shift: float, top: float) -> ir.Value:
    shifted = new.op("Add", x, new.constant("shift", shift), like=x)
    return new.op("Clip", shifted, new.constant("zero", 0.0), new.constant("top", top), like=x)


def _hand_written(graph: ir.Model, node: ir.Node) -> Change | None:
    """x · clip(x + 3, 0, 6) / 6 with the sixth on the product, on the clip, or on x: all become one form."""
    if node.graph is None or not is_float32(node.outputs[0]):
        return None
    x = _swish_input(node)
    return None if x is None else _write_hard_swish(graph, node, x)


def _swish_input(node: ir.Node) -> ir.Value | None:
    """x, where `node` computes HardSwish(x) in any spelling but the one that `apply` writes."""
    if node.op_type == "Mul" and with_number(node) is None:
        first, second = node.inputs
        for x, gate in ((first, second), (second, first)):
            if x is not None and _is_hard_sigmoid_of(gate, x):
                return x
        for scaled, gate in ((first, second), (second, first)):  # (x / 6) · clip(x + 3, 0, 6)
            found = _sixth_of(scaled)
            if found is not None and has_one_reader(_value(scaled)) and _is_clip_of(gate, found):
                return found
        return None
    product = _sixth_of(node.outputs[0])
    inner = None if product is None or node.op_type == "Mul" else produced_by(product, "Mul")
    if inner is None or not has_one_reader(inner.outputs[0]):
        return None
    return next((x for x in inner.inputs if x is not None and _is_clip_of(other_operand(inner, x), x)), None)


def _value(value: ir.Value | None) -> ir.Value:
    if value is None:
        raise ValueError("a missing operand has no readers")
    return value


def _sixth_of(value: ir.Value | None) -> ir.Value | None:
    """y, where `value` is y/6."""
    divided = produced_by(value, "Div")
    if divided is not None:
        return divided.inputs[0] if close(number(divided.inputs[1]), 6.0) else None
    found = with_number(produced_by(value, "Mul"))
    return found[0] if found is not None and close(found[1], 1 / 6) else None


def _is_clip_of(value: ir.Value | None, x: ir.Value) -> bool:
    """Whether `value` is clip(x + 3, 0, 6)."""
    clip = produced_by(value, "Clip")
    if clip is None or not has_one_reader(clip.outputs[0]):
        return False
    bounds = clip_bounds(clip)
    shifted = with_number(produced_by(clip.inputs[0], "Add"))
    if bounds is None or shifted is None:
        return False
    return shifted[0] is x and close(shifted[1], 3.0) and close(bounds[0], 0.0) and close(bounds[1], 6.0)


def _is_hard_sigmoid_of(value: ir.Value | None, x: ir.Value) -> bool:
    """Whether `value`, read nowhere else, is clip(x/6 + 1/2, 0, 1) in any spelling."""
    if value is None or not has_one_reader(value):
        return False
    node = produced_by(value, "HardSigmoid")
    if node is not None:
        alpha, beta = node.attributes.get_float("alpha", 0.2), node.attributes.get_float("beta", 0.5)
        return node.inputs[0] is x and close(alpha, 1 / 6) and close(beta, 0.5)
    scaled = _sixth_of(value)
    return scaled is not None and _is_clip_of(scaled, x)
