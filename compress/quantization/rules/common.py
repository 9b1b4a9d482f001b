"""What rules of several runtimes ask of a graph."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import onnx_ir as ir

from compress.graph.constants import is_constant
from compress.quantization.rules.layers import (
    Pair,
    ends_in_layer,
    holds_constant,
    layers_of,
    name_of,
    pair_of,
    source_of,
)

OPERATOR_FORMS = frozenset({"ConvInteger", "DynamicQuantizeLinear", "MatMulInteger", "QLinearConv", "QLinearMatMul"})


def foreign_operators(graph: ir.Model) -> Iterator[str]:
    """Integer operators and those of ONNX Runtime's own domain, where a runtime reads quantize/dequantize pairs."""
    for node in graph.graph.all_nodes():
        if node.domain not in ("", "ai.onnx") or node.op_type in OPERATOR_FORMS:
            yield f"{name_of(node)} ({node.op_type})"


def pairs_before_additions(graph: ir.Model) -> Iterator[str]:
    """Additions of two computed tensors where a layer's result goes through a pair before it is added."""
    for node in _additions(graph):
        values = list(node.inputs)
        if any(pair_of(value) is None and ends_in_layer(value) is not None for value in values):
            continue  # one branch is fused; the other needs its pair
        behind = [value for value in values if pair_of(value) is not None and ends_in_layer(source_of(value))]
        if behind:
            yield name_of(node)


def additions_without_pair(graph: ir.Model) -> Iterator[str]:
    """Residual additions behind a quantized layer whose other branch has no pair."""
    quantized = {layer.node for layer in layers_of(graph) if layer.x is not None and layer.weight is not None}
    for node in _additions(graph):
        if any(ends_in_layer(value) in quantized for value in node.inputs) and not any(map(pair_of, node.inputs)):
            yield name_of(node)


def gates_taken_apart(graph: ir.Model) -> Iterator[str]:
    """x · sigmoid(x) behind a layer with a pair inside."""
    for node in graph.graph:
        if node.op_type != "Mul" or len(node.inputs) != 2:
            continue
        sources = [source_of(value) for value in node.inputs]
        for gate, x in (sources, sources[::-1]):
            maker = gate.producer() if gate is not None else None
            if maker is None or maker.op_type != "Sigmoid" or source_of(maker.inputs[0]) is not x:
                continue
            if any(pair_of(value) for value in (*node.inputs, maker.inputs[0])):
                yield name_of(node)
                break


def unequal_concats(graph: ir.Model) -> Iterator[str]:
    """Concats of dequantized tensors whose scales differ."""
    for node in graph.graph:
        pairs = [pair_of(value) for value in node.inputs] if node.op_type == "Concat" else []
        known = [pair for pair in pairs if pair is not None and pair.scale is not None]
        if len(known) == len(pairs) and len({_grid(pair) for pair in known}) > 1:
            yield name_of(node)


def _grid(pair: Pair) -> tuple[float, int]:
    assert pair.scale is not None
    return float(pair.scale.flat[0]), 0 if pair.zero is None else int(pair.zero.flat[0])


def half_quantized(graph: ir.Model, types: Collection[str]) -> Iterator[str]:
    """Layers of `types` with codes for a weight but a float input, or the other way about."""
    for layer in layers_of(graph):
        if layer.node.op_type in types and layer.weighted and (layer.x is None) != (layer.weight is None):
            yield f"{name_of(layer.node)} ({'input' if layer.x is None else 'weight'} is float)"


def _additions(graph: ir.Model) -> Iterator[ir.Node]:
    """Additions of two computed tensors."""
    for node in graph.graph:
        if node.op_type == "Add" and not any(is_constant(value) or _is_dequantized(value) for value in node.inputs):
            yield node


def _is_dequantized(value: ir.Value | None) -> bool:
    return pair_of(value) is not None and holds_constant(value)
