"""A graph that computes in float16, with what half precision cannot hold left in float32.

Half precision has 11 bits and ends at 65504: products and activations take it well, sums over many numbers, exponentials and
normalizations do not (Micikevicius et al. 2018, "Mixed Precision Training", section 3.3). What stays in float32:

* normalizations, softmax, reductions over many elements, exponentials and powers (`FLOAT`);
* every node that reads or makes a tensor which came within a factor of 4 of 65504 on the calibration samples, or which never
  left the range in which half loses bits (below 6e-5);
* every node that reads a constant which half cannot hold: too large, or a small one (an epsilon) that would become 0;
* what ONNX defines for float32 alone, and what lies inside If, Loop and Scan.

A Cast stands wherever a tensor goes from one side to the other; inputs and outputs keep their types.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import onnx
import onnx_ir as ir
from torch import nn

from compress.batches import Batch, read_batch
from compress.counting import counted
from compress.errors import QuantizationError
from compress.given import batches_of
from compress.graph.constants import constant_array
from compress.graph.editing import Namer, name_everything, remove_unused, values_of
from compress.graph.exporting import to_graph
from compress.graph.folding import fold_constants, infer_shapes
from compress.graph.naming import layer_of, matching_nodes
from compress.graph.opset import opset_of
from compress.options import spelled_out
from compress.quantization.calibration import all_rows, run_streaming, two_samples
from compress.quantization.options import HalfFields, HalfOptions
from compress.runtimes.onnxruntime import Session
from compress.steps import Change, Step
from compress.taking import takes

LARGEST, SMALLEST = 65504.0, 2.0**-14  # of half's numbers; of those that have all its bits
MARGIN = 4.0  # what data not seen may exceed the calibration samples by
SHORT = 16  # elements up to which a constant is a number that an equation needs, not a weight
SAMPLES = 8  # that the finished file is tried on
FLOAT = frozenset(
    {
        "BatchNormalization",
        "GroupNormalization",
        "InstanceNormalization",
        "LRN",
        "LayerNormalization",
        "LpNormalization",
    }
    | {"MeanVarianceNormalization", "RMSNormalization", "LogSoftmax", "Softmax", "Exp", "Log", "Pow", "Reciprocal"}
    | {"GlobalAveragePool", "GlobalLpPool", "CumSum", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp"}
    | {"ReduceMean", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Resize", "Range", "TopK", "NonMaxSuppression"}
    | {"RoiAlign", "GridSample", "Einsum", "Cast", "CastLike", "ConstantOfShape", "Constant", "EyeLike", "Bernoulli"}
    | {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "If", "Loop", "Scan", "SequenceMap"}
)
_QUANTIZED = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "DynamicQuantizeLSTM"}


@takes()
def quantize_float16(
    model: nn.Module | ir.Model | str | Path,
    calibration: Iterable[Any] | None = None,
    options: HalfOptions | None = None,
    *,
    example_inputs: Any = None,
    threads: int | None = None,
    **fields: Unpack[HalfFields],
) -> Step:
    """Let a model compute in float16 wherever half precision holds what it computes.

    Args:
        calibration: batches on which tensors that come near 65504 are found and the result is tried; None tries nothing.
        options: how; `fields` are those of `HalfOptions` spelled out.

    Returns:
        A Step with one change for each node that computes in half, and one, skipped, with the reason, for each that does not.

    Raises:
        QuantizationError: the model is quantized or half already; nothing can be half; outputs that are not finite.
        InputError: a name in `exclude` that matches nothing.
    """
    options = spelled_out(HalfOptions, options, fields, "quantize_float16")
    if calibration is not None:
        calibration = batches_of(calibration)
        if isinstance(model, nn.Module) and example_inputs is None:
            example_inputs = two_samples(calibration)
    graph = infer_shapes(fold_constants(to_graph(model, example_inputs).clone()))
    name_everything(graph)
    _check(graph)
    left_out = matching_nodes(graph, options.exclude) if options.exclude else set()
    outside = _outside(graph, calibration, threads) if calibration is not None else {}
    reasons = {node: _reason(node, opset_of(graph), outside, left_out) for node in graph.graph}
    half = {node for node, reason in reasons.items() if not reason and _floats(node)}
    if not any(node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN") for node in half):
        raise QuantizationError("no layer of this graph can compute in float16: " + _why(reasons))
    _convert(graph, half)
    tried = (
        _try(graph, calibration, threads)
        if calibration is not None
        else "not tried for overflow: give data to calibrate on"
    )
    changes = [_change(node, reason) for node, reason in reasons.items() if _floats(node) or node in half]
    return Step("float16", graph, tuple(changes), (_note(changes), tried))


def _check(graph: ir.Model) -> None:
    kinds = {node.op_type for node in graph.graph.all_nodes()}
    if kinds & _QUANTIZED:
        raise QuantizationError("this graph is quantized already; give the float model")
    if not any(value.dtype == ir.DataType.FLOAT for value in values_of(graph.graph)):
        raise QuantizationError("this graph has no float32 tensor; give the float model")


def _outside(graph: ir.Model, calibration: Iterable[Any], threads: int | None) -> dict[str, float]:
    """Tensors that half precision does not hold, with the largest magnitude seen."""
    names = [str(value.name) for node in graph.graph for value in node.outputs if value.dtype == ir.DataType.FLOAT]
    names += [str(value.name) for value in graph.graph.inputs if value.dtype == ir.DataType.FLOAT]
    seen: dict[str, float] = {}

    def look(name: str, values: np.ndarray) -> None:
        if values.size:
            seen[name] = max(seen.get(name, 0.0), float(np.abs(values).max()))

    run_streaming(graph, names, calibration, look, threads=threads, description="looking for overflow")
    return {name: largest for name, largest in seen.items() if largest > LARGEST / MARGIN or 0 < largest < SMALLEST}


def _floats(node: ir.Node) -> bool:
    """Whether a node computes floats at all."""
    return any(value.dtype == ir.DataType.FLOAT for value in node.outputs)


def _reason(node: ir.Node, opset: int, outside: dict[str, float], left_out: set[ir.Node]) -> str:
    """Why a node stays in float32; empty where half precision holds what it does."""
    if node in left_out:
        return "excluded by name"
    if node.op_type in FLOAT:
        return f"{node.op_type} needs float32"
    if node.domain not in ("", "ai.onnx") or not _takes_half(node.op_type, opset):
        return f"{node.op_type} has no float16 form"
    for value in (*node.inputs, *node.outputs):
        if value is not None and str(value.name) in outside:
            end = (
                f"half ends at {LARGEST:.0f}"
                if outside[str(value.name)] > 1
                else f"half loses bits below {SMALLEST:.0e}"
            )
            return f"{value.name} reaches {outside[str(value.name)]:.3g} on the calibration samples; {end}"
        array = constant_array(value) if value is not None else None
        if array is not None and array.dtype == np.float32 and not _holds(array):
            return f"half cannot hold its constant {str(value.name)!r}"  # type: ignore[union-attr]  # only of those that are there
    return ""


def _holds(array: np.ndarray) -> bool:
    """Whether half precision holds a constant: finite, and no short one becomes 0."""
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    if not np.isfinite(half[np.isfinite(array)]).all():
        return False
    return array.size > SHORT or not bool(((half == 0) & (array != 0)).any())


def _takes_half(op_type: str, opset: int) -> bool:
    """Whether ONNX defines the operator for float16 wherever it takes float32."""
    try:
        schema = onnx.defs.get_schema(op_type, opset, "")
    except onnx.defs.SchemaError:
        return False
    allowed = {item.type_param_str: item.allowed_type_strs for item in schema.type_constraints}
    kinds = [allowed.get(port.type_str, [port.type_str]) for port in (*schema.inputs, *schema.outputs)]
    floats = [kind for kind in kinds if "tensor(float)" in kind]
    return bool(floats) and all("tensor(float16)" in kind for kind in floats)


def _convert(graph: ir.Model, half: set[ir.Node]) -> None:
    """Make the nodes of `half` compute in float16, in place, with casts where tensors change sides."""
    namer = Namer(graph)
    made = {value for node in half for value in node.outputs if value.dtype == ir.DataType.FLOAT}
    for result in made:
        result.dtype = ir.DataType.FLOAT16
    narrow: dict[ir.Value, ir.Value] = {}
    for node in [node for node in graph.graph if node in half]:
        for index, value in enumerate(node.inputs):
            if value is not None and value.dtype == ir.DataType.FLOAT:
                if value not in narrow:
                    narrow[value] = _narrowed(graph, value, namer)
                node.replace_input_with(index, narrow[value])
    for result in sorted(made, key=lambda value: str(value.name)):
        readers = [(node, index) for node, index in result.uses() if node not in half]
        if readers or result.is_graph_output():
            _widen(graph, result, readers, namer)
    remove_unused(graph)


def _narrowed(graph: ir.Model, value: ir.Value, namer: Namer) -> ir.Value:
    """`value` in float16: constants as they are stored, others behind a Cast at the place where they are made."""
    array = constant_array(value)
    if array is not None:
        return namer.initializer(graph, f"{value.name}_half", array.astype(np.float16))
    cast, producer = _cast(value, ir.DataType.FLOAT16, f"{value.name}_half", namer), value.producer()
    if producer is None:
        graph.graph.insert_before(graph.graph[0], cast)
    else:
        graph.graph.insert_after(producer, cast)
    return cast.outputs[0]


def _widen(graph: ir.Model, value: ir.Value, readers: list[tuple[ir.Node, int]], namer: Namer) -> None:
    """Give the float32 readers of a half tensor, and the caller where it is an output, a float32 form of it."""
    name, producer = str(value.name), value.producer()
    assert producer is not None
    cast = _cast(value, ir.DataType.FLOAT, f"{name}_float", namer)
    graph.graph.insert_after(producer, cast)
    wide = cast.outputs[0]
    for node, index in readers:
        node.replace_input_with(index, wide)
    outputs = graph.graph.outputs
    for index in [index for index, item in enumerate(outputs) if item is value]:
        outputs[index] = wide
        value.name = namer(f"{name}_half")
        cast.outputs[0].name = name


def _cast(value: ir.Value, to: ir.DataType, name: str, namer: Namer) -> ir.Node:
    cast = ir.node("Cast", [value], {"to": to}, name=namer(f"{name}/Cast"))
    result = cast.outputs[0]
    result.name, result.dtype, result.shape = namer(name), to, value.shape
    return cast


def _try(graph: ir.Model, calibration: Iterable[Any], threads: int | None) -> str:
    """Run the result on a few samples; a sentence on it.

    Raises:
        QuantizationError: an output is not finite.
    """
    batch: Batch = next(iter(read_batch(raw).part(0, SAMPLES) for raw in calibration))
    for value, array in zip(graph.graph.outputs, all_rows(Session(graph, threads=threads), batch)):
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise QuantizationError(
                f"output {value.name!r} is not finite in float16; leave the layers before it in float (exclude)"
            )
    return f"no tensor left half precision on the calibration samples (a factor of {MARGIN:.0f} is kept free)"


def _change(node: ir.Node, reason: str) -> Change:
    values = {"node": str(node.name), "op_type": node.op_type}
    if reason:
        return Change(layer_of(node), "left in float32", reason, skipped=True, values=values)
    return Change(layer_of(node), "computes in float16", values=values)


def _note(changes: list[Change]) -> str:
    done, left = (sum(change.skipped is flag for change in changes) for flag in (False, True))
    kinds = Counter(str(change.values["op_type"]) for change in changes if change.skipped)
    named = f": {', '.join(sorted(kinds))}" if kinds else ""
    return (
        f"{counted(done, 'node')} compute in float16, {left} in float32{named}; GPUs and NPUs have the kernels, ONNX Runtime's CPU "
        "casts most of them back to float32"
    )


def _why(reasons: dict[ir.Node, str]) -> str:
    stated = [reason for reason in reasons.values() if reason]
    return stated[0] if stated else "it has none"
