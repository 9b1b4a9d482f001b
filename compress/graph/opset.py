"""Opsets of ONNX graphs: raised in place where what is to be written needs a newer one, then held against the old form."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir
from torch import Tensor

from compress.batches import Batch
from compress.errors import CompressError, InputError, ParityError, UnsupportedOperatorError
from compress.graph.parity import Parity, compare
from compress.runtimes.onnxruntime import Session
from compress.state import unlogged

KNOWN_TO_WORK = 23  # where the exporter does not say
OLDEST = 13  # that we write: what pairs with one scale per channel need
# What an opset needs at least of the file format's own version, which some runtimes check.
IR_VERSIONS = ((13, 7), (15, 8), (19, 9), (21, 10))
_REFUSED = (
    "the file's ONNX opset is {found}, {purpose} needs {least}, and it cannot be raised: {why}; export the model again "
    "with opset {least} or newer (torch.onnx.export(..., opset_version={least}))"
)


def opset_of(graph: ir.Model) -> int:
    """The version of ONNX's own operators that `graph` uses; 0 where it uses none."""
    return graph.opset_imports.get("", graph.opset_imports.get("ai.onnx", 0))


def check_opset(opset: int | None) -> None:
    """Refuse an opset that no file of ours can have.

    Raises:
        InputError: it is older than 13, or newer than the exporter and ONNX Runtime share.
    """
    if opset is not None and not OLDEST <= opset <= newest_opset():
        raise InputError(f"opset {opset} cannot be written; choose {OLDEST} to {newest_opset()}")


@functools.cache
def newest_opset() -> int:
    """The newest opset that the exporter writes and ONNX Runtime runs an operator of."""
    from onnxscript.version_converter import _version_converter  # the exporter's last step

    written = getattr(_version_converter, "SUPPORTED_MAX_ONNX_OPSET", KNOWN_TO_WORK)
    for version in range(min(written, onnx.defs.onnx_opset_version()), OLDEST, -1):
        value = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1]))
        nodes = [ir.node("Relu", [value], name="relu")]
        nodes[0].outputs[0].name = "y"
        graph = ir.Graph([value], nodes[0].outputs, nodes=nodes, opset_imports={"": version}, name="newest")
        try:
            Session(ir.Model(graph, ir_version=10))
        except CompressError:
            continue
        return version
    return OLDEST


def ensure_opset(
    graph: ir.Model,
    least: int,
    *,
    purpose: str,
    wanted: int | None = None,
    inputs: Sequence[Tensor | np.ndarray] | None = None,
    threads: int | None = None,
) -> tuple[str, ...]:
    """Raise `graph`, in place, where its opset is below `least`; sentences for the user tell of it.

    The graph before and after must give the same outputs in ONNX Runtime on `inputs`, where there are any.

    Args:
        purpose: what needs the opset, as the beginning of "… needs 13".
        wanted: the opset to raise to where that works (default: `least`), else it is `least`.

    Raises:
        UnsupportedOperatorError: it cannot be raised, or computes something else then.
    """
    found = opset_of(graph)
    if found >= least:
        return ()
    before = graph.clone() if inputs is not None else None
    reason = ""
    for version in dict.fromkeys([wanted or least, least]):
        try:
            graph_raised = _raised(graph, version)
            parity = _compared(before, graph_raised, inputs, threads)
        except CompressError as error:
            reason = str(error)
            continue
        graph.graph, graph.ir_version = graph_raised.graph, graph_raised.ir_version
        graph.functions.clear()  # they were inlined
        return (_note(found, version, purpose, least, parity),)
    raise UnsupportedOperatorError(_REFUSED.format(found=found, purpose=purpose, least=least, why=reason))


def raise_opset(graph: ir.Model, version: int) -> None:
    """Raise `graph`, in place, to `version`; nothing is done where it has that.

    Raises:
        UnsupportedOperatorError: an operator stands in the way, with the converter's reason.
    """
    from onnxscript.version_converter import convert_version

    graph.ir_version = max(graph.ir_version or 0, *(own for opset, own in IR_VERSIONS if opset <= version), 0)
    if opset_of(graph) >= version:
        return
    if "ai.onnx" in graph.opset_imports:  # the same domain, spelled out
        graph.opset_imports[""] = graph.opset_imports.pop("ai.onnx")
    try:
        with unlogged():
            convert_version(graph, version, fallback=True)
    except Exception as error:  # the converter's own kinds share no base
        raise UnsupportedOperatorError(_one_line(error)) from error
    if opset_of(graph) < version:  # it only logs why
        raise UnsupportedOperatorError(_converter_reason(graph, version))


def _raised(graph: ir.Model, version: int) -> ir.Model:
    raised = graph.clone()
    raise_opset(raised, version)
    return raised


def _compared(
    before: ir.Model | None, after: ir.Model, inputs: Sequence[Tensor | np.ndarray] | None, threads: int | None
) -> Parity | None:
    session = Session(after, threads=threads)  # loading it says what the checker of opsets does not
    if before is None or inputs is None:
        return None
    try:
        expected = Session(before, threads=threads).run(*inputs)
    except CompressError:  # inputs that the file itself does not take say nothing of its raised form
        return None
    parity = compare(lambda: expected, lambda: session.run(*inputs), ())
    if not parity.agrees:
        raise ParityError(f"the raised graph's outputs differ by up to {parity.difference:.3g}")
    return parity


def _note(found: int, version: int, purpose: str, least: int, parity: Parity | None) -> str:
    checked = "its outputs are not compared: there was nothing to run it on"
    if parity is not None:
        same = "the same" if parity.difference == 0 else f"the same to {parity.difference:.1g}"
        checked = f"ONNX Runtime gives {same} before and after"
    return f"the file's ONNX opset {found} was raised to {version}, because {purpose} needs {least}; {checked}"


def _converter_reason(graph: ir.Model, version: int) -> str:
    try:
        onnx.version_converter.convert_version(ir.to_proto(graph), version)
    except Exception as error:  # the C++ converter raises plain runtime errors, and protobuf its own
        return _one_line(error)
    return "an operator cannot be carried over"


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    text = text.split("Assertion", 1)[-1].partition("failed:")[2] if "Assertion" in text and "failed:" in text else text
    return (text.strip() or type(error).__name__)[:160].rstrip(". ")


def stand_ins(graph: ir.Model) -> tuple[np.ndarray, ...] | None:
    """Random inputs of the sizes that `graph` declares, one for each that is free; None where a rank or type is unknown."""
    random, found = np.random.default_rng(0), []
    for value in graph.graph.inputs:
        if value.name in graph.graph.initializers:
            continue
        if value.shape is None or value.dtype is None or value.dtype.name not in ("FLOAT", "DOUBLE", "FLOAT16"):
            return None
        sizes = [size if isinstance(size, int) and size > 0 else 1 for size in value.shape]
        found.append(random.standard_normal(sizes).astype(value.dtype.numpy()))
    return tuple(found)


def fixed_inputs(graph: ir.Model, batch: Batch) -> tuple[Tensor, ...]:
    """The inputs of `batch`, in the graph's order, with as many samples as a graph of fixed batch takes: the first ones, repeated where there are fewer.

    Raises:
        InputError: names that do not fit, or a wrong number of inputs.
    """
    wanted = [value for value in graph.graph.inputs if value.name not in graph.graph.initializers]
    bound = batch.bound([str(value.name) for value in wanted], whose=f"graph {graph.graph.name!r}")
    return tuple(_rows(bound[str(value.name)], value.shape) for value in wanted)


def _rows(value: Tensor, shape: ir.Shape | None) -> Tensor:
    rows = shape[0] if shape is not None and len(shape) and isinstance(shape[0], int) else None
    if not isinstance(rows, int) or not value.dim() or not len(value) or len(value) == rows:
        return value
    return value.repeat(-(-rows // len(value)), *[1] * (value.dim() - 1))[:rows]
