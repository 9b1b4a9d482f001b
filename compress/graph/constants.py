"""What is constant in a graph: known before it runs, whatever its inputs."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import onnx_ir as ir

from compress.counting import counted

NARROW = frozenset({ir.DataType.INT4, ir.DataType.UINT4})
_WIDENED: weakref.WeakKeyDictionary[ir.Node, ir.Tensor[Any]] = weakref.WeakKeyDictionary()


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
    if stored is None or stored.dtype not in NARROW or cast.attributes.get_int("to", 0) not in (2, 3):
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
