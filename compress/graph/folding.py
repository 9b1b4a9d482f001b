"""Constant folding, and the shapes that follow from the inputs."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compress.graph.constants import NARROW, constant_array, is_constant
from compress.graph.editing import consumers, remove_unused, values_of
from compress.state import quiet_logger

# What stays although it is constant: the points where int8 begins and ends.
_KEPT = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
_MAKES_LARGER = frozenset({"Expand", "Tile", "ConstantOfShape", "Range", "Pad", "Resize", "OneHot"})
# Results of more elements than this must not make the file larger: folding an Expand of one
# number would otherwise write megabytes of it.
_FREE_ELEMENTS = 16_384


def fold_constants(graph: ir.Model, *, duplicate: bool = False) -> ir.Model:
    """Compute, in place, whatever depends on constants alone; weights of any size included. Returns `graph`.

    LSTM weights, which the exporter re-orders with Slice, Concat and Unsqueeze, become plain initializers, Constant
    nodes become initializers, nodes and initializers that nothing reads go. Quantize and dequantize nodes stay. A large
    weight that is also read as it stands (an embedding tied to the output layer) is transposed at run time as before,
    unless `duplicate` allows a second copy of it.
    """
    from onnxscript.optimizer._constant_folding import FoldConstantsPass

    def should_fold(node: ir.Node) -> bool:
        return _is_standard(node) and node.op_type not in _KEPT and not _grows(node, duplicate)

    passes = ir.passes.common
    with quiet_logger("onnxscript"), quiet_logger("onnx_ir"):
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(graph)
        before = -1
        while before != graph.graph.num_nodes():  # a folded Split may free more
            before = graph.graph.num_nodes()
            FoldConstantsPass(
                shape_inference=True, input_size_limit=0, output_size_limit=2**62, should_fold=should_fold
            )(graph)
            _fold_splits(graph.graph)
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(graph)
        remove_unused(graph)
    return graph


def infer_shapes(graph: ir.Model) -> ir.Model:
    """Fill in, in place, the types and shapes that follow from the inputs; ones already known stay. Returns `graph`."""
    known = {id(value): (value.shape, value.dtype) for value in values_of(graph.graph)}
    with quiet_logger("onnx_ir"):
        ir.passes.common.ShapeInferencePass(check_type=False, strict_mode=False)(graph)
    for value in values_of(graph.graph):
        shape, dtype = known.get(id(value), (None, None))
        if shape is not None and (value.shape is None or _is_vaguer(value.shape, shape)):
            value.shape = shape
        if dtype is not None and value.dtype is None:
            value.dtype = dtype
    return graph


def _is_standard(node: ir.Node) -> bool:
    return node.domain in ("", "ai.onnx")


def _grows(node: ir.Node, duplicate: bool) -> bool:
    """Whether writing the result of a node with constant inputs down would make the file much larger."""
    if _widens(node):
        return True
    large = [value for value in node.inputs if value is not None and _elements(value) > _FREE_ELEMENTS]
    if node.op_type in _MAKES_LARGER:
        return _elements(node.outputs[0]) > _FREE_ELEMENTS
    if not large:  # of several small ones an outer product can still be large
        read = sum(_elements(value) for value in node.inputs if value is not None)
        return _elements(node.outputs[0]) > max(_FREE_ELEMENTS, read)
    return not duplicate and any(_is_read_at_run_time(value) for value in large)


def _widens(node: ir.Node) -> bool:
    """A Cast of stored int8 or float16 weights to float: the runtime folds it when it loads the file."""
    source = node.inputs[0].const_value if node.op_type == "Cast" and node.inputs[0] is not None else None
    to = node.attributes.get_int("to", 0)
    if source is not None and source.dtype in NARROW:
        return True
    if source is None or source.size <= _FREE_ELEMENTS or not to:
        return False
    return ir.DataType(to).bitwidth > source.dtype.bitwidth


def _is_read_at_run_time(value: ir.Value) -> bool:
    return value.is_graph_output() or any(
        not all(is_constant(other) for other in node.inputs if other is not None) for node in consumers(value)
    )


def _elements(value: ir.Value) -> int:
    if value.const_value is not None:
        return value.const_value.size
    shape = value.shape
    if shape is None or not all(isinstance(dim, int) for dim in shape):
        return _FREE_ELEMENTS + 1  # not known: taken for large
    return int(np.prod([int(str(dim)) for dim in shape]))


def _fold_splits(graph: ir.Graph) -> None:
    for node in list(graph):
        array = constant_array(node.inputs[0]) if node.op_type == "Split" and _is_standard(node) else None
        if array is None:
            continue
        axis = node.attributes.get_int("axis", 0)
        sizes = constant_array(node.inputs[1]) if len(node.inputs) > 1 else None
        if sizes is not None:
            parts = np.split(array, np.cumsum(sizes)[:-1], axis=axis)
        else:
            step = -(-array.shape[axis] // len(node.outputs))
            parts = np.split(array, range(step, step * len(node.outputs), step), axis=axis)
        if any(value.is_graph_output() for value in node.outputs):
            continue
        for value, part in zip(node.outputs, parts):
            tensor = ir.Tensor(np.ascontiguousarray(part), name=value.name)
            fresh = ir.Value(
                name=value.name, shape=ir.Shape(part.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
            )
            ir.convenience.replace_all_uses_with(value, fresh)
            value.name = f"{value.name}_split"
            graph.register_initializer(fresh)
        graph.remove(node, safe=True)


def _is_vaguer(new: ir.Shape, old: ir.Shape) -> bool:
    """Whether inference knows less about a shape than what stood there: a number lost, or a name."""
    if len(new) != len(old):
        return False
    known = [(isinstance(a, int), isinstance(b, int)) for a, b in zip(new, old)]
    return any(b and not a for a, b in known) or all(a == b for a, b in known)
