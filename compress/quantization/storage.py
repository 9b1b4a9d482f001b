"""How weights are stored in the file: tables in int8, and codes of four bits in four bits.

    Gather(E, i)        →  Cast(Gather(Eq, i)) · Gather(sE, i)          one scale per row; only the rows read are widened
    int8 codes, |q| ≤ 7 →  INT4 codes, two to a byte, behind Cast(to int8)

ONNX Runtime folds the Cast when it loads the file, so that what runs is what int8 codes would have run, bit for bit, at
their speed; OpenVINO does the same. INT4 came with opset 21: older graphs are raised to it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable

import ml_dtypes
import numpy as np
import onnx_ir as ir

from compress.counting import counted
from compress.errors import UnsupportedOperatorError
from compress.graph.constants import constant_array
from compress.graph.editing import Namer
from compress.graph.naming import layer_of
from compress.graph.opset import opset_of, raise_opset
from compress.quantization.dynamic_operators import Refused, Rewriter, store_embedding, table_of
from compress.quantization.targets import weight_limit
from compress.quantization.weights import LIMIT
from compress.steps import Change

NARROW = 4  # the widest bits that are stored in four
OPSET = 21  # of INT4
SMALLEST_CODES = 64  # fewer are not worth a node
# Between two opsets their meaning changed, so that raising the number alone would change the result.
_RAISED = "the graph's opset is {found}, and codes of four bits need {OPSET}: {why}; export it again, or take 8 bits"


def tables_of(graph: ir.Model) -> list[ir.Node]:
    """The nodes that read rows of a float table large enough to be stored in int8."""
    found = []
    for node in graph.graph:
        if node.op_type == "Gather" and node.domain in ("", "ai.onnx"):
            with contextlib.suppress(Refused):
                table_of(node)
                found.append(node)
    return found


def store_tables(graph: ir.Model, names: Collection[str], *, bits: int = 8) -> tuple[Change, ...]:
    """Store, in place, the tables that the nodes `names` read as codes with one scale per row; one change for each."""
    rewriter = Rewriter(graph, "int8", False, Namer(graph), bits=bits)
    changes = []
    for node in tables_of(graph):
        if node.name in names:
            values = {"node": node.name or "", "op_type": "Gather", "weight_bits": bits}
            changes.append(Change(layer_of(node), store_embedding(rewriter, node), values=values))
    return tuple(changes)


def narrow_codes(graph: ir.Model) -> list[str]:
    """The initializers that were noted as codes of four bits or fewer, by name; the notes go."""
    found = []
    for name, value in graph.graph.initializers.items():
        if int(value.metadata_props.pop(LIMIT, "127")) <= weight_limit(NARROW):
            found.append(name)
    return found


def store_in_four_bits(graph: ir.Model, names: Iterable[str] | None = None) -> tuple[Change, ...]:
    """Store, in place, int8 constants whose codes fit as INT4 behind a Cast that the runtime folds.

    Args:
        names: initializers that may be stored so; None: all whose codes lie in −8 … 7.

    Raises:
        UnsupportedOperatorError: the graph's opset is too old and cannot be raised.
    """
    wanted = None if names is None else set(names)
    found = [
        value
        for value in graph.graph.initializers.values()
        if (wanted is None or value.name in wanted) and not value.is_graph_input() and _fits(value)
    ]
    if not found:
        return ()
    namer, bytes_before = Namer(graph), sum(value.const_value.nbytes for value in found if value.const_value)
    for value in found:
        _behind_cast(graph, value, namer)
    raise_for_four_bits(graph)
    kept = sum(value.const_value.size for value in found if value.const_value is not None) // 2
    values = {"tensors": len(found), "bytes_before": bytes_before, "bytes_after": kept}
    return (Change("graph", f"the codes of {counted(len(found), 'weight')} are stored in four bits", values=values),)


def raise_for_four_bits(graph: ir.Model) -> None:
    """Raise the graph, in place, to the first opset that has INT4; nothing is done where it has it.

    Raises:
        UnsupportedOperatorError: an operator stands in the way.
    """
    found = opset_of(graph)
    try:
        raise_opset(graph, OPSET)
    except UnsupportedOperatorError as error:
        raise UnsupportedOperatorError(_RAISED.format(found=found, OPSET=OPSET, why=error)) from error


def _fits(value: ir.Value) -> bool:
    if value.dtype != ir.DataType.INT8 or value.shape is None or len(value.shape) < 2:
        return False
    array = constant_array(value)
    return array is not None and array.size >= SMALLEST_CODES and bool(array.min() >= -8 and array.max() <= 7)


def _behind_cast(graph: ir.Model, value: ir.Value, namer: Namer) -> None:
    """The initializer keeps its name and becomes INT4; what read it reads a Cast of it."""
    array = constant_array(value)
    assert array is not None
    first = next(iter(graph.graph))
    cast = ir.node("Cast", [value], {"to": ir.DataType.INT8}, name=namer(f"{value.name}/Cast"))
    wide = cast.outputs[0]
    wide.name, wide.dtype, wide.shape = namer(f"{value.name}_wide"), ir.DataType.INT8, value.shape
    for node, index in list(value.uses()):
        if node is not cast:
            node.replace_input_with(index, wide)
    value.const_value = ir.Tensor(np.asarray(array).astype(ml_dtypes.int4), name=value.name)
    value.dtype = ir.DataType.INT4
    graph.graph.insert_before(first, cast)
