"""One layer quantized alone, taken apart: its weights only, its activations only, and the error at its own output."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from compress.batches import Batch
from compress.graph.constants import constant_array
from compress.graph.editing import Namer, remove_unused
from compress.quantization.arithmetic import dequantize
from compress.quantization.calibrated import Calibrated
from compress.quantization.calibration import all_rows
from compress.quantization.finishing import finish
from compress.quantization.weights import axis_of, codes_of, pairs_saturate_in
from compress.runtimes.onnxruntime import Session, with_outputs

OWN_SAMPLES = 8  # on which the error at a layer's own output is taken; its tensors may be large
RUNS, SECONDS = 30, 3.0  # of timing


@dataclass(frozen=True)
class Apart:
    """Graphs with one layer quantized: whole, its weights alone (None where it has none), its activations alone."""

    whole: ir.Model
    weights: ir.Model | None
    activations: ir.Model
    bytes_saved: int


def take_apart(calibrated: Calibrated, name: str) -> Apart:
    """The graphs in which the layer `name` (a node) is quantized alone, all others in float."""
    paired = calibrated.quantize(only=[name], fold=False).model
    floats, activations = calibrated.graph.clone(), paired.clone()
    whole = calibrated.quantize(only=[name]).model
    changed, bits = changed_by_rounding(floats, paired, name), calibrated.weights.bits_of(_named(floats, name))
    for node_name, position, before, after in changed:
        put(floats, node_name, position, after)
        put(activations, node_name, position, before)
    weight = constant_array(_named(calibrated.graph, name).inputs[1])
    saved = 0 if weight is None else weight.nbytes - -(-weight.size * (4 if bits == 4 else 8) // 8)
    return Apart(whole, floats if changed else None, finish(activations), saved)


def changed_by_rounding(floats: ir.Model, paired: ir.Model, name: str) -> list[tuple[str, int, np.ndarray, np.ndarray]]:
    """(node, position, before, after) of each constant of the layer `name` that differs in `paired`, as numbers.

    `paired` has its weights behind quantize/dequantize pairs (`Calibrated.quantize(fold=False)`); the weight is one, a
    corrected bias another.
    """
    found = []
    for node in [_named(floats, name), *_adding(floats, name)]:
        for position, _ in enumerate(node.inputs):
            before, after = constant_array(node.inputs[position]), _value_of(paired, str(node.name), position)
            if before is not None and after is not None and not np.array_equal(before, after):
                found.append((str(node.name), position, before, after))
    return found


def own_noise(calibrated: Calibrated, name: str, whole: ir.Model, inputs: Batch, threads: int | None) -> float | None:
    """Σ (ŷ − y)² / Σ y² at the layer's own output, as its readers get it; None where that tensor is not in both."""
    node = next((item for item in whole.graph if item.name == name), None)
    known = {str(value.name) for item in calibrated.graph.graph for value in item.outputs}
    if node is None or node.outputs[0].name not in known:
        return None
    value = node.outputs[0]
    for kind in ("QuantizeLinear", "DequantizeLinear"):
        reader = next((use.node for use in value.uses() if use.node.op_type == kind), None)
        if reader is None:
            break
        value = reader.outputs[0]
    few = inputs.part(0, OWN_SAMPLES)
    (wanted,), (found,) = (
        all_rows(Session(with_outputs(graph, [read]), threads=threads, arena=False), few)
        for graph, read in ((calibrated.graph, str(node.outputs[0].name)), (whole, str(value.name)))
    )
    if wanted.shape != found.shape:
        return None
    signal = float(np.square(wanted.astype(np.float64)).sum())
    return float(np.square(wanted.astype(np.float64) - found).sum()) / max(signal, 1e-30)


def times_saved(calibrated: Calibrated, inputs: Batch, threads: int | None) -> dict[str, float]:
    """Milliseconds that each layer takes less in the int8 file than in float, one sample; by node name, where both tell.

    Pairs between layers are not counted: which layer would they belong to?
    """
    one = inputs.part(0, 1)
    before, after = (_times(graph, one, threads) for graph in (calibrated.graph, calibrated.quantize().model))
    found = {}
    for node in calibrated.graph.graph:
        names = list(_fused_names(node)) if node.name in calibrated.layers else []
        times = [next((part[name] for name in names if name in part), None) for part in (before, after)]
        if times[0] is not None and times[1] is not None:
            found[str(node.name)] = (times[0] - times[1]) / 1000
    return found


def _times(graph: ir.Model, one: Batch, threads: int | None) -> dict[str, float]:
    session = Session(graph, threads=threads, profile=True)
    end = time.monotonic() + SECONDS
    for count in range(RUNS):
        all_rows(session, one)
        if count and time.monotonic() > end:
            break
    found: dict[str, float] = {}
    for row in session.profile():
        name = re.sub(r"_(token_\d+|nchwc)$", "", row["node"])
        found[name] = found.get(name, 0.0) + row["microseconds"]
    return found


def _fused_names(node: ir.Node) -> Iterator[str]:
    """The names that the runtime may give this layer: its own, or that of the last node fused into it."""
    for _ in range(3):
        yield str(node.name)
        uses = list(node.outputs[0].uses())
        if len(uses) != 1 or node.outputs[0].is_graph_output():
            return
        node = uses[0].node


def _named(graph: ir.Model, name: str) -> ir.Node:
    return next(node for node in graph.graph if node.name == name)


def _adding(graph: ir.Model, name: str) -> Iterator[ir.Node]:
    """The Add that holds a MatMul's bias."""
    for use in _named(graph, name).outputs[0].uses():
        if use.node.op_type == "Add" and any(constant_array(value) is not None for value in use.node.inputs):
            yield use.node


def _value_of(graph: ir.Model, name: str, position: int) -> np.ndarray | None:
    """What a node reads there as a number: a constant, or the rounded form of one behind its pair."""
    node = next((item for item in graph.graph if item.name == name), None)
    value = node.inputs[position] if node is not None and position < len(node.inputs) else None
    maker = value.producer() if value is not None else None
    source = maker.inputs[0].producer() if maker is not None and maker.inputs[0] is not None else None
    if maker is None or source is None or maker.op_type != "DequantizeLinear" or source.op_type != "QuantizeLinear":
        return constant_array(value)
    codes, scale = codes_of(source, saturates=pairs_saturate_in(graph)), constant_array(source.inputs[1])
    if codes is None or scale is None:
        return None
    return dequantize(codes, scale, axis=axis_of(source) if scale.ndim else None)


def put(graph: ir.Model, name: str, position: int, values: np.ndarray) -> None:
    """Let the node read these numbers instead, in place."""
    node = _named(graph, name)
    fresh = Namer(graph).initializer(graph, f"{name}.{position}", values.astype(np.float32))
    node.replace_input_with(position, fresh)
    remove_unused(graph)
