"""A quantize/dequantize graph as a runtime's parser sees it: layers with the pairs at their inputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from compress.graph.constants import constant_array, is_constant
from compress.graph.editing import consumers
from compress.quantization.kernels import CLIPS, HEAVY, STORED, weight_axis

# What a convolution's kernel takes in behind it, in the runtimes that fuse.
ACTIVATIONS = CLIPS | {"Elu", "HardSigmoid", "HardSwish", "LeakyRelu", "PRelu", "Sigmoid"}


@dataclass(frozen=True)
class Pair:
    """What a DequantizeLinear says: scales, zero points (None: 0), the type of the codes, the axis of several scales."""

    scale: np.ndarray | None
    zero: np.ndarray | None
    codes: ir.DataType | None
    axis: int

    @property
    def by_channel(self) -> bool:
        return self.scale is not None and self.scale.size > 1

    @property
    def symmetric(self) -> bool:
        return self.zero is None or not self.zero.any()


@dataclass(frozen=True)
class Layer:
    """A Conv, ConvTranspose, Gemm or MatMul with the pairs at its input, its weight and its bias; None where there is none."""

    node: ir.Node
    x: Pair | None
    weight: Pair | None
    bias: Pair | None
    weighted: bool  # its second input is a constant, quantized or not


def name_of(node: ir.Node) -> str:
    return node.name or f"{node.op_type} giving {node.outputs[0].name}"


def pair_of(value: ir.Value | None) -> Pair | None:
    """The pair whose DequantizeLinear makes `value`; None where another node does."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "DequantizeLinear":
        return None
    codes, scale = node.inputs[0], node.inputs[1]
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    kind = codes.dtype if codes is not None else None
    zeros = constant_array(zero) if zero is not None else None
    if kind is None and zeros is not None:
        kind = ir.DataType.from_numpy(zeros.dtype)
    return Pair(constant_array(scale), zeros, kind, node.attributes.get_int("axis", 1))


def layers_of(graph: ir.Model) -> Iterator[Layer]:
    """Every layer with a weight of the main graph."""
    for node in graph.graph:
        if node.op_type not in HEAVY | STORED or node.domain not in ("", "ai.onnx") or len(node.inputs) < 2:
            continue
        weight = pair_of(node.inputs[1])
        stored = is_constant(node.inputs[1]) or (weight is not None and holds_constant(node.inputs[1]))
        bias = pair_of(node.inputs[2]) if len(node.inputs) > 2 else None
        if node.op_type == "MatMul":
            bias = next((found for found in map(_bias_in, consumers(node.outputs[0])) if found), None)
        yield Layer(node, pair_of(node.inputs[0]), weight, bias, stored)


def pairs_of(graph: ir.Model) -> Iterator[tuple[ir.Node, Pair, bool]]:
    """Each DequantizeLinear with what it says, and whether it dequantizes a constant."""
    for node in graph.graph:
        pair = pair_of(node.outputs[0])
        if pair is not None:
            yield node, pair, holds_constant(node.outputs[0])


def axis_is_wrong(layer: Layer) -> bool:
    """Whether the scales of a weight lie along another axis than its outputs."""
    pair, weight = layer.weight, layer.node.inputs[1]
    if pair is None or not pair.by_channel or weight is None or weight.shape is None:
        return False
    wanted = weight_axis(layer.node)
    return wanted is None or pair.axis % len(weight.shape) != wanted


def ends_in_layer(value: ir.Value | None) -> ir.Node | None:
    """The layer whose result this is, an activation at most between; None for anything else."""
    node = value.producer() if value is not None else None
    if node is not None and node.op_type in ACTIVATIONS | {"Mul"}:
        node = next((item.producer() for item in node.inputs if item is not None and not is_constant(item)), None)
        if node is not None and node.op_type == "Sigmoid":  # x · sigmoid(x)
            node = node.inputs[0].producer() if node.inputs[0] is not None else None
    return node if node is not None and node.op_type in HEAVY | STORED else None


def source_of(value: ir.Value | None) -> ir.Value | None:
    """The tensor that a quantize/dequantize pair stands on; `value` itself without one."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "DequantizeLinear" or node.inputs[0] is None:
        return value
    before = node.inputs[0].producer()
    return before.inputs[0] if before is not None and before.op_type == "QuantizeLinear" else value


def holds_constant(value: ir.Value | None) -> bool:
    """Whether the DequantizeLinear behind `value` reads a constant, or one that a QuantizeLinear or Cast has made."""
    node = value.producer() if value is not None else None
    codes = node.inputs[0] if node is not None else None
    if codes is None or is_constant(codes):
        return codes is not None
    maker = codes.producer()
    return maker is not None and maker.op_type in ("QuantizeLinear", "Cast") and is_constant(maker.inputs[0])


def _bias_in(reader: ir.Node) -> Pair | None:
    if reader.op_type != "Add":
        return None
    return next((pair_of(value) for value in reader.inputs if pair_of(value) and holds_constant(value)), None)
