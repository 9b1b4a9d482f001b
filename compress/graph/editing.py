"""Adds to a graph and takes from it: constants, nodes, names that are free; who reads a value."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from compress.errors import ModelError

_NAMES = "compress.names"  # note in memory on a graph whose names are being made


def values_of(graph: ir.Graph) -> Iterator[ir.Value]:
    """Every value of one graph: inputs, initializers, what its nodes make (not those of subgraphs)."""
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from (value for value in node.outputs if value.name)


def consumers(value: ir.Value) -> list[ir.Node]:
    """The nodes that read `value`, each once, in no particular order."""
    return list(dict.fromkeys(node for node, _ in value.uses()))


class Namer:
    """Hands out names that no value or node of one graph bears."""

    def __init__(self, graph: ir.Model) -> None:
        self._taken: set[str | None] = {value.name for part in graph.graphs() for value in values_of(part)}
        self._taken |= {node.name for node in graph.graph.all_nodes()}

    def __call__(self, name: str) -> str:
        free, index = name, 0
        while free in self._taken:
            index += 1
            free = f"{name}_{index}"
        self._taken.add(free)
        return free

    def initializer(self, graph: ir.Model, name: str, array: np.ndarray) -> ir.Value:
        """Add a constant to the main graph under `name`, or the nearest free one."""
        return _registered(graph, self(name), array)


def unique_name(graph: ir.Model, name: str) -> str:
    """`name`, or `name_1`, `name_2` …: the first that no value or node of the graph bears."""
    namer: Namer = graph.meta.get(_NAMES) or Namer(graph)
    return namer(name)


@contextlib.contextmanager
def naming(graph: ir.Model) -> Iterator[None]:
    """While many names are made by `unique_name`, and by nothing else, read those of the graph only once."""
    graph.meta[_NAMES] = Namer(graph)
    try:
        yield
    finally:
        del graph.meta[_NAMES]


def name_everything(graph: ir.Model) -> None:
    """Give every node, those of branches and loops too, a name of its own, in place, so that reports can refer to it."""
    namer = Namer(graph)
    seen: set[str] = set()
    outer = set(graph.graph)
    for node in (*graph.graph, *(node for node in graph.graph.all_nodes() if node not in outer)):
        if not node.name or node.name in seen:
            node.name = namer(node.name or node.outputs[0].name or node.op_type)
        seen.add(node.name)


def add_initializer(graph: ir.Model, name: str, array: np.ndarray, *, dtype: ir.DataType | None = None) -> ir.Value:
    """Add a constant to the main graph, under `name` or the nearest free one, and return its value."""
    return _registered(graph, unique_name(graph, name), array, dtype)


def _registered(graph: ir.Model, name: str, array: np.ndarray, dtype: ir.DataType | None = None) -> ir.Value:
    array = np.asarray(array)  # a number has no shape; what is made contiguous has one dimension at least
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
