"""PReLU with one slope for all channels as LeakyRelu, which has an int8 kernel.

    PReLU(x; s) = max(x, 0) + s·min(x, 0)  =  LeakyRelu(x; α = s)         one number s
    PReLU(x; 0) = Relu(x)

The int8 LeakyRelu is a table of 256 entries with one α. Slopes that differ per channel would need a table each; through
int8 factors they cost four passes, more than one float PRelu between two conversions, so they stay.
"""

from __future__ import annotations

import onnx_ir as ir

from compress.graph.constants import constant_array
from compress.graph.editing import remove_unused
from compress.quantization.rewrites.matching import Replacement, is_float32, name_of, nodes
from compress.steps import Change

ACTION = "written as LeakyRelu"


def apply(graph: ir.Model) -> tuple[Change, ...]:
    """Rewrite, in place, every PRelu with a single slope."""
    changes = tuple(_rewrite(graph, node) for node in nodes(graph, "PRelu"))
    remove_unused(graph)
    return changes


def _rewrite(graph: ir.Model, node: ir.Node) -> Change:
    x, name = node.inputs[0], name_of(node)
    slopes = constant_array(node.inputs[1])
    if x is None or not is_float32(x):
        return Change(name, ACTION, "its input is not float32", skipped=True)
    if slopes is None:
        return Change(name, ACTION, "its slope is computed by the graph", skipped=True)
    slope = float(slopes.reshape(-1)[0])
    if not (slopes == slope).all():
        return Change(
            name, ACTION, f"its {slopes.size} slopes differ per channel; the int8 table has one", skipped=True
        )
    if x.shape is None or slopes.ndim > len(x.shape):
        return Change(name, ACTION, "its slope may broadcast the input to more dimensions", skipped=True)
    new = Replacement(graph, node)
    result = new.op("Relu", x, like=x) if slope == 0 else new.op("LeakyRelu", x, like=x, alpha=slope)
    new.finish(result)
    return Change(name, ACTION, f"one slope, {slope:g}")
