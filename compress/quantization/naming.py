"""Fresh names in a graph, without searching it for each."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compress.graph.folding import values_of


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
        name = self(name)
        tensor = ir.Tensor(np.asarray(array), name=name)
        value = ir.Value(name=name, shape=ir.Shape(tensor.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        graph.graph.register_initializer(value)
        return value


def name_everything(graph: ir.Model) -> None:
    """Give every node, those of branches and loops too, a name of its own, in place, so that reports can refer to it."""
    namer = Namer(graph)
    seen: set[str] = set()
    outer = set(graph.graph)
    for node in (*graph.graph, *(node for node in graph.graph.all_nodes() if node not in outer)):
        if not node.name or node.name in seen:
            node.name = namer(node.name or node.outputs[0].name or node.op_type)
        seen.add(node.name)
