"""Reading patterns of nodes in a graph, then putting others in their place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import onnx_ir as ir

from compress.graph.constants import constant_array
from compress.graph.editing import add_initializer, replace_node, unique_name

_STANDARD = ("", "ai.onnx")
_FLOAT = "compress.float"  # note on a node that will stay in float, whatever is written in its place


def nodes(graph: ir.Model, *op_types: str) -> Iterator[ir.Node]:
    """The standard nodes of these types, in order; safe while the graph changes, removed ones left out."""
    for node in list(graph.graph):
        if node.graph is not None and node.op_type in op_types and node.domain in _STANDARD:
            yield node


def produced_by(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    """The standard node of one of these types that makes `value`, or None."""
    node = None if value is None else value.producer()
    return node if node is not None and node.domain in _STANDARD and node.op_type in op_types else None


def number(value: ir.Value | None) -> float | None:
    """The one number that a constant holds, whatever its rank, or None."""
    if value is None or (value.const_value is None and value.producer() is None):
        return None
    array = constant_array(value)
    return float(array.reshape(())) if array is not None and array.size == 1 else None


def close(value: float | None, expected: float) -> bool:
    """Equal to float32 rounding; exporters write 1/6 and 1/√2 in several ways."""
    return value is not None and abs(value - expected) <= 1e-5 * max(1.0, abs(expected))


def with_number(node: ir.Node | None) -> tuple[ir.Value, float] | None:
    """(the other operand, the number) of an Add or Mul with one constant number."""
    if node is None or len(node.inputs) != 2:
        return None
    for value, constant in ((node.inputs[0], node.inputs[1]), (node.inputs[1], node.inputs[0])):
        found = number(constant)
        if found is not None and value is not None and constant_array(value) is None:
            return value, found
    return None


def other_operand(node: ir.Node, value: ir.Value | None) -> ir.Value | None:
    """The operand of a two-input node beside `value`; None where `value` is not one, or is both."""
    first, second = node.inputs
    if first is second:
        return None
    return second if first is value else first if second is value else None


def is_power(value: ir.Value | None, base: ir.Value, exponent: int) -> bool:
    """Whether `value` is base^exponent, as a Pow or as products."""
    power = produced_by(value, "Pow")
    if power is not None:
        return power.inputs[0] is base and close(number(power.inputs[1]), exponent)
    if exponent == 1:
        return value is base
    product = produced_by(value, "Mul")
    if product is None or base not in product.inputs:
        return False
    rest = product.inputs[1] if product.inputs[0] is base else product.inputs[0]
    return is_power(rest, base, exponent - 1)


def has_one_reader(value: ir.Value) -> bool:
    return len(value.uses()) == 1 and not value.is_graph_output()


def keep_float(chosen: Iterable[ir.Node]) -> None:
    """Note, in place, that these nodes will stay in float; rewrites leave alone them and what hangs on them."""
    for node in chosen:
        node.metadata_props[_FLOAT] = "yes"


def stays_float(node: ir.Node | None) -> bool:
    return node is not None and _FLOAT in node.metadata_props


def why_float(node: ir.Node, x: ir.Value) -> str:
    """Why the activation `node` of `x` keeps the form that float runs fastest; empty where it need not."""
    if stays_float(node):
        return "it stays in float"
    return "the layer before it stays in float" if stays_float(x.producer()) else ""


def is_float32(value: ir.Value | None) -> bool:
    return value is not None and value.dtype == ir.DataType.FLOAT


def name_of(node: ir.Node) -> str:
    return node.name or f"{node.op_type} → {node.outputs[0].name}"


class Replacement:
    """New nodes being written to take the place of one old node."""

    def __init__(self, graph: ir.Model, old: ir.Node) -> None:
        self._graph, self._old = graph, old
        self._nodes: list[ir.Node] = []

    def constant(self, label: str, value: Any, dtype: np.dtype | type = np.float32) -> ir.Value:
        return add_initializer(self._graph, f"{name_of(self._old)}_{label}", np.asarray(value, dtype=dtype))

    def op(
        self, op_type: str, *inputs: ir.Value | None, like: ir.Value | None = None, domain: str = "", **attributes: Any
    ) -> ir.Value:
        """Append a node; return its output, of the type and shape of `like` where given."""
        name = unique_name(self._graph, f"{name_of(self._old)}_{op_type.lower()}_{len(self._nodes)}")
        node = ir.node(op_type, inputs, attributes=attributes, domain=domain, name=name)
        node.metadata_props.update(self._old.metadata_props)
        output = node.outputs[0]
        output.name = unique_name(self._graph, f"{name}_output")
        source = like if like is not None else inputs[0]
        output.type = None if source is None else source.type
        output.shape = like.shape if like is not None else None
        self._nodes.append(node)
        return output

    def insert_before(self, node: ir.Node) -> None:
        """Put the new nodes in front of `node`, and leave the old one where it is."""
        self._graph.graph.insert_before(node, self._nodes)

    def finish(self, result: ir.Value) -> None:
        """Put the new nodes in place; `result` takes over the name, type, shape and readers of the old output."""
        old = self._old.outputs[0]
        result.type, result.shape = old.type, old.shape
        replace_node(self._old, self._nodes, [result])
