"""Batch normalization behind a layer folded into its weights and bias, which other frameworks leave apart.

BatchNorm(Conv(x; W, b))  =  Conv(x; g·W, g·(b − μ) + β)     g = γ / √(σ² + ε)

Also where a constant stands between the two. Transposed convolutions and Gemm likewise.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compress.graph.constants import constant_array
from compress.graph.editing import remove_unused
from compress.quantization.rewrites.channel_bias import channels_of, fold_addition, layer_before, scale_and_add
from compress.quantization.rewrites.matching import has_one_reader, name_of, nodes, produced_by
from compress.steps import Change


def apply(graph: ir.Model) -> tuple[Change, ...]:
    """Fold, in place, every batch normalization that only one layer feeds."""
    changes = [_fold(graph, node) for node in nodes(graph, "BatchNormalization")]
    remove_unused(graph)
    return tuple(change for change in changes if change is not None)


def _fold(graph: ir.Model, node: ir.Node) -> Change | None:
    x = node.inputs[0]
    addition = produced_by(x, "Add")
    if addition is not None and x is not None and has_one_reader(x) and fold_addition(graph, addition) is not None:
        x = node.inputs[0]
    arrays = [constant_array(value) for value in node.inputs[1:5]]
    layer = layer_before(x, node)
    known = [array.astype(np.float64) for array in arrays if array is not None]
    training = node.attributes.get_int("training_mode", 0) or any(value.uses() for value in node.outputs[1:])
    if (
        layer is None
        or x is None
        or len(known) != 4
        or training
        or any(array.size != channels_of(layer) for array in known)
    ):
        return None
    gamma, beta, mean, variance = known
    factors = gamma / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
    scale_and_add(graph, layer, factors, beta - factors * mean)
    node.outputs[0].replace_all_uses_with(x)
    graph.graph.remove(node, safe=True)
    return Change(name_of(node), "batch normalization folded", f"it goes into the weights of {name_of(layer)}")
