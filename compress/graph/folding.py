"""Constant folding, shape inference, small questions about a graph or its values."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from compress.counting import counted
from compress.errors import ModelError
from compress.state import quiet_logger

# What stays although it is constant: the points where int8 begins and ends.
_KEPT = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
_MAKES_LARGER = frozenset({"Expand", "Tile", "ConstantOfShape", "Range", "Pad", "Resize", "OneHot"})
# Results of more elements than this must not make the file larger: folding an Expand of one
# number would otherwise write megabytes of it.
_FREE_ELEMENTS = 16_384
_NARROW = frozenset({ir.DataType.INT4, ir.DataType.UINT4})
_WIDENED: weakref.WeakKeyDictionary[ir.Node, ir.Tensor[Any]] = weakref.WeakKeyDictionary()
_NAMES = "compress.names"  # note in memory on a graph whose names are being made


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


def values_of(graph: ir.Graph) -> Iterator[ir.Value]:
    """Every value of one graph: inputs, initializers, what its nodes make (not those of subgraphs)."""
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from (value for value in node.outputs if value.name)


def consumers(value: ir.Value) -> list[ir.Node]:
    """The nodes that read `value`, each once, in no particular order."""
    return list(dict.fromkeys(node for node, _ in value.uses()))


def is_constant(value: ir.Value | None) -> bool:
    """Whether `value` is known now: an initializer that is no input, or the output of a Constant node."""
    return constant_tensor(value) is not None


def constant_tensor(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor that `value` always holds, or None. An initializer that callers may override is none."""
    if value is None or value.is_graph_input():
        return None
    if value.is_initializer():
        return value.const_value
    node = value.producer()
    if node is None or node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type == "Constant":
        return ir.convenience.get_const_tensor(value)
    return _wide_codes(node) if node.op_type == "Cast" else None


def _wide_codes(cast: ir.Node) -> ir.TensorProtocol | None:
    """The codes behind a Cast that only widens how they are stored (INT4 in the file, int8 to the runtime)."""
    stored = cast.inputs[0].const_value if cast.inputs[0] is not None else None
    if stored is None or stored.dtype not in _NARROW or cast.attributes.get_int("to", 0) not in (2, 3):
        return None
    if cast not in _WIDENED:
        wide = np.int8 if cast.attributes.get_int("to", 0) == ir.DataType.INT8 else np.uint8
        _WIDENED[cast] = ir.Tensor(stored.numpy().astype(wide), name=cast.outputs[0].name)
    return _WIDENED[cast]


def constant_array(value: ir.Value | None) -> np.ndarray | None:
    """The constant that `value` holds as an array (not to be written to), or None."""
    tensor = constant_tensor(value)
    return None if tensor is None else tensor.numpy()


def stored_bytes(graph: ir.Model) -> int:
    """Bytes of all constants of a graph, as initializers or in Constant nodes, those of branches and loops too."""
    kept = [value.const_value for part in graph.graphs() for value in part.initializers.values()]
    written = [node.attributes["value"].as_tensor() for node in graph.graph.all_nodes() if _holds_tensor(node)]
    return sum(tensor.nbytes for tensor in (*kept, *written) if tensor is not None)


def _holds_tensor(node: ir.Node) -> bool:
    return node.op_type == "Constant" and "value" in node.attributes


def weights_as_constants(graph: ir.Model) -> tuple[str, ...]:
    """Take initializers out of the inputs, in place, among which old exporters list them; a sentence where there were.

    As an input a weight is a default that callers may override, so that nothing may be made of its value.
    """
    inputs = graph.graph.inputs
    listed = [value for value in inputs if value.name in graph.graph.initializers]
    if not listed:
        return ()
    kept = [value for value in inputs if value.name not in graph.graph.initializers]
    inputs.clear()
    inputs.extend(kept)
    return (
        counted(
            len(listed),
            "weight that the file lists among its inputs is a constant",
            "weights that the file lists among its inputs are constants",
        )
        + " in the result",
    )


def unique_name(graph: ir.Model, name: str) -> str:
    """`name`, or `name_1`, `name_2` …: the first that no value or node of the graph bears."""
    taken = graph.meta.get(_NAMES) or _names(graph)
    free = name
    if name in taken:
        free = next(f"{name}_{index}" for index in range(1, len(taken) + 2) if f"{name}_{index}" not in taken)
    taken.add(free)
    return free


@contextlib.contextmanager
def naming(graph: ir.Model) -> Iterator[None]:
    """While many names are made by `unique_name`, and by nothing else, read those of the graph only once."""
    graph.meta[_NAMES] = _names(graph)
    try:
        yield
    finally:
        del graph.meta[_NAMES]


def _names(graph: ir.Model) -> set[str | None]:
    taken = {value.name for part in graph.graphs() for value in values_of(part)}
    return taken | {node.name for node in graph.graph.all_nodes()}


def add_initializer(graph: ir.Model, name: str, array: np.ndarray, *, dtype: ir.DataType | None = None) -> ir.Value:
    """Add a constant to the main graph, under `name` or the nearest free one, and return its value."""
    name = unique_name(graph, name)
    tensor = ir.Tensor(np.ascontiguousarray(array).reshape(array.shape), dtype=dtype, name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.graph.register_initializer(value)
    return value


def replace_node(old: ir.Node, new: Sequence[ir.Node], outputs: Sequence[ir.Value]) -> None:
    """Put the nodes `new` where `old` stands; their `outputs` take over the names and readers of its outputs."""
    if old.graph is None:
        raise ModelError(f"node {old.name!r} is in no graph, so nothing can take its place")
    ir.convenience.replace_nodes_and_values(old.graph, old, [old], new, old.outputs, outputs)


def remove_unused(graph: ir.Model) -> None:
    """Drop nodes and initializers that nothing reads, in place, those of branches and loops too."""
    _let_go(graph)
    while ir.passes.common.RemoveUnusedNodesPass()(graph).modified:
        _let_go(graph)  # a branch that went may have been the last to read a weight
    for part in graph.graphs():
        for name, value in list(part.initializers.items()):
            if not (value.uses() or value.is_graph_output() or value.is_graph_input()):
                del part.initializers[name]


def _let_go(graph: ir.Model) -> None:
    """End the reading by nodes that are in the graph no more: those of a branch that was never taken, say."""
    there = set(graph.graph.all_nodes())
    for function in graph.functions.values():
        there.update(function.all_nodes())
    for part in graph.graphs():
        for value in values_of(part):
            for node, index in list(value.uses()):
                if node not in there:
                    node.replace_input_with(index, None)


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
    if source is not None and source.dtype in _NARROW:
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
