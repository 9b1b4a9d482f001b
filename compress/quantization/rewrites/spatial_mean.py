"""A mean over all spatial axes as GlobalAveragePool, which has an int8 kernel.

ReduceMean(x, axes = 2 … r−1, keepdims = 1)  =  GlobalAveragePool(x)                     x of rank r ≥ 3
ReduceMean(x, axes = 2 … r−1, keepdims = 0)  =  Flatten(GlobalAveragePool(x), axis = 1)
AveragePool(x, kernel = the whole image)     =  GlobalAveragePool(x)
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from compress.graph.constants import constant_array
from compress.graph.editing import remove_unused
from compress.quantization.rewrites.matching import Replacement, is_float32, name_of, nodes
from compress.steps import Change

ACTION = "written as GlobalAveragePool"


def apply(graph: ir.Model) -> tuple[Change, ...]:
    """Rewrite, in place, every mean over the spatial axes; a mean over other axes is left without a note."""
    changes = [_reduce_mean(graph, node) for node in nodes(graph, "ReduceMean")]
    changes += [_average_pool(graph, node) for node in nodes(graph, "AveragePool")]
    remove_unused(graph)
    return tuple(change for change in changes if change is not None)


def _reduce_mean(graph: ir.Model, node: ir.Node) -> Change | None:
    x, name = node.inputs[0], name_of(node)
    if x is None or not is_float32(x):
        return None
    if x.shape is None:
        return Change(name, ACTION, "the rank of its input is not known", skipped=True)
    rank = len(x.shape)
    axes = _axes(node)
    if axes is None:
        return Change(name, ACTION, "its axes are not constant", skipped=True)
    axes = sorted(axis % rank for axis in axes) if rank else []
    if rank < 3 or axes != list(range(2, rank)):
        layout = rank == 4 and axes == [1, 2]
        reason = "it averages axes 1 and 2 of a channels-last tensor" if layout else ""
        return Change(name, ACTION, reason, skipped=True) if layout else None
    new = Replacement(graph, node)
    pooled = new.op("GlobalAveragePool", x)
    if node.attributes.get_int("keepdims", 1):
        new.finish(pooled)
    else:
        pooled.shape = ir.Shape([*x.shape[:2], *([1] * (rank - 2))])
        new.finish(new.op("Flatten", pooled, axis=1))
    return Change(name, ACTION, f"the mean over axes {axes} is one over the whole image")


def _axes(node: ir.Node) -> Sequence[int] | None:
    """The axes, from the attribute (before opset 18) or the second input; all of them where neither is given."""
    if "axes" in node.attributes:
        return node.attributes.get_ints("axes")
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        array = constant_array(node.inputs[1])
        return None if array is None else [int(axis) for axis in array]
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    return None if shape is None or node.attributes.get_int("noop_with_empty_axes", 0) != 0 else range(len(shape))


def _average_pool(graph: ir.Model, node: ir.Node) -> Change | None:
    x = node.inputs[0]
    if x is None or x.shape is None or not is_float32(x):
        return None
    image = list(x.shape)[2:]
    if list(node.attributes.get_ints("kernel_shape", [])) != image or any(node.attributes.get_ints("pads", [])):
        return None
    new, name = Replacement(graph, node), name_of(node)
    new.finish(new.op("GlobalAveragePool", x))
    return Change(name, ACTION, f"its window is the whole image, {image}")
