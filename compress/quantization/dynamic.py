"""Dynamic quantization: int8 weights now, activations quantized as each input comes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Unpack

import onnx_ir as ir
from torch import Tensor, nn

from compress.errors import QuantizationError, nearest
from compress.graph.constants import constant_tensor, weights_as_constants
from compress.graph.editing import Namer, name_everything, remove_unused
from compress.graph.exporting import to_graph
from compress.graph.folding import fold_constants
from compress.graph.naming import layer_of, matching_nodes
from compress.graph.opset import ensure_opset, stand_ins
from compress.onnx_files import give_back
from compress.options import spelled_out
from compress.quantization.dynamic_operators import FLOAT16, INT8, SMALLEST_ELEMENTS, Refused, Rewriter
from compress.quantization.options import DynamicFields, DynamicOptions
from compress.quantization.storage import narrow_codes, store_in_four_bits
from compress.quantization.targets import Target, resolve_target
from compress.quantization.weights import TARGET
from compress.steps import Change, Step
from compress.taking import takes

WEIGHT_TYPES = ("float16", "int8", "uint8")
OLDEST_OPSET = 11  # DynamicQuantizeLinear
WANTED_OPSET = 13  # what old files are raised to, where they have to be
# What PyTorch users call them → ONNX operators.
ALIASES = {"Embedding": ("Gather",), "Linear": ("Gemm", "MatMul"), "Conv2d": ("Conv",), "Conv1d": ("Conv",)}
# Convolutions have no fast dynamic kernel, so int8 only shrinks the file: on request.
DEFAULT_INT8 = ("GRU", "Gather", "Gemm", "LSTM", "MatMul", "RNN")
_QUANTIZED = frozenset({"MatMulInteger", "DynamicQuantizeLSTM", "QLinearConv", "QLinearMatMul", "DequantizeLinear"})


@takes()
def quantize_dynamic(
    model: nn.Module | ir.Model | str | Path,
    options: DynamicOptions | None = None,
    *,
    example_inputs: Sequence[Tensor] | Tensor | None = None,
    **fields: Unpack[DynamicFields],
) -> Step:
    """Quantize the weights of linear, recurrent and embedding layers; no calibration data is needed.

    MatMul, Gemm and LSTM run in int8. GRU, RNN and embeddings, for which ONNX Runtime has no int8 kernel, are stored
    in int8 and run in float. With `weight_type="float16"` every weight is stored in half precision and all runs in
    float. What stays float is listed with the reason.

    Args:
        options: how; `fields` are those of `DynamicOptions` spelled out: `quantize_dynamic(model, weight_type="float16")`.
        example_inputs: one batch, where `model` is a module.

    Raises:
        QuantizationError: unknown weight type or operator.
        InputError: an option that does not exist; `exclude` names nothing in the graph.
        UnsupportedOperatorError: the graph's opset is older than 11, and cannot be raised.
    """
    options = spelled_out(DynamicOptions, options, fields, "quantize_dynamic")
    weight_type, exclude = options.weight_type, options.exclude
    chosen = _operators(options.op_types, weight_type)
    processor = resolve_target(options.target)  # x86 without VNNI adds in 16 bits: int8 weights must not overflow them
    graph = to_graph(model, example_inputs)
    notes = weights_as_constants(graph) + ensure_opset(
        graph, OLDEST_OPSET, wanted=WANTED_OPSET, purpose="quantizing activations as they come", inputs=stand_ins(graph)
    )
    graph = fold_constants(graph, duplicate=True)
    name_everything(graph)
    left_out = matching_nodes(graph, exclude) if exclude else set()
    rewriter = Rewriter(graph, weight_type, processor.pairs_saturate, Namer(graph), bits=options.weight_bits)
    changes = [
        change
        for node in list(graph.graph.all_nodes())  # those of branches and loops too
        if (change := _rewrite(rewriter, node, chosen, left_out)) is not None
    ]
    remove_unused(graph)
    if weight_type != "float16":
        graph.metadata_props[TARGET] = processor.name
    changes += store_in_four_bits(graph, narrow_codes(graph))
    return Step("quantize_dynamic", graph, tuple(changes), (*notes, *_notes(changes, weight_type, processor)))


def _rewrite(rewriter: Rewriter, node: ir.Node, chosen: frozenset[str], left_out: set[ir.Node]) -> Change | None:
    """Rewrite one node; the change made or refused, None where there is nothing to quantize."""
    layer, before = node.name or layer_of(node), _weight_bytes(node)
    weights = [constant_tensor(value) for value in node.inputs]
    known = INT8 if rewriter.weight_type != "float16" else FLOAT16
    if node.domain not in ("", "ai.onnx") or node.op_type not in known:
        return _leftover(node, layer)
    if node in left_out:
        return Change(layer, f"{node.op_type} stays float", "excluded by name", skipped=True)
    if node.op_type not in chosen:
        return Change(layer, f"{node.op_type} stays float", _not_chosen(node, rewriter.weight_type), skipped=True)
    if node.op_type == "Gather" and constant_tensor(node.inputs[0]) is None:
        return None  # a selection, not an embedding
    try:
        action = known[node.op_type](rewriter, node)
    except Refused as reason:
        if node.op_type == "Gather" and before < 4 * SMALLEST_ELEMENTS:
            return None
        return Change(layer, f"{node.op_type} stays float", str(reason), skipped=True)
    finally:
        for weight in weights:
            give_back(weight)
    return Change(layer, action, values={"op_type": node.op_type, "float_bytes": before})


def _leftover(node: ir.Node, layer: str) -> Change | None:
    """A node that no rule covers is worth a line where it holds weights."""
    if node.op_type in _QUANTIZED or _weight_bytes(node) < 4 * SMALLEST_ELEMENTS:
        return None
    return Change(layer, f"{node.op_type} stays float", f"{node.op_type} has no int8 form here", skipped=True)


def _not_chosen(node: ir.Node, weight_type: str) -> str:
    if node.op_type in ("Conv", "ConvTranspose") and weight_type != "float16":
        return "ONNX Runtime has no fast dynamic convolution; --method static runs it in int8"
    return "its operator type was not chosen"


def _operators(names: Collection[str] | None, weight_type: str) -> frozenset[str]:
    if weight_type not in WEIGHT_TYPES:
        raise QuantizationError(f"unknown weight type {weight_type!r}; {nearest(weight_type, WEIGHT_TYPES)}")
    if names is None:
        return frozenset(FLOAT16 if weight_type == "float16" else DEFAULT_INT8)
    chosen: set[str] = set()
    for name in names:
        if name not in INT8 and name not in ALIASES:
            raise QuantizationError(
                f"dynamic quantization has no operator type {name!r}; {nearest(name, [*INT8, *ALIASES])}"
            )
        chosen.update(ALIASES.get(name, (name,)))
    return frozenset(chosen)


def _weight_bytes(node: ir.Node) -> int:
    """Bytes of the float constants that a node reads."""
    tensors = [constant_tensor(value) for value in node.inputs]
    return sum(tensor.nbytes for tensor in tensors if tensor is not None and tensor.dtype.is_floating_point())


def _notes(changes: Sequence[Change], weight_type: str, processor: Target) -> tuple[str, ...]:
    notes = []
    if not any(not change.skipped for change in changes):
        notes.append("nothing was quantized: the graph has no linear, recurrent or embedding layer that could be")
    elif weight_type == "int8" and processor.pairs_saturate:
        notes.append(
            f"int8 weights are chosen so that no pair of products overflows the 16 bits of the {processor.name} kernel; "
            "uint8 weights have no such limit and are up to a fifth slower"
        )
    return tuple(notes)
