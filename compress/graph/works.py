"""What each layer of a graph does with a batch: multiply-accumulates, and the elements that it reads and writes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from compress.batches import Batch, resized_batch
from compress.runtimes.onnxruntime import Session

# Operators whose work is counted → position of the weight (or of the second operand).
CONVOLUTIONS = {"Conv": 1, "ConvInteger": 1, "QLinearConv": 3, "ConvTranspose": 1, "FusedConv": 1}
PRODUCTS = {
    **dict.fromkeys(("MatMul", "Gemm", "FusedMatMul", "FusedGemm", "MatMulInteger"), 1),
    **dict.fromkeys(("DynamicQuantizeMatMul", "MatMulIntegerToFloat"), 1),
    **dict.fromkeys(("QLinearMatMul", "QGemm"), 3),
}
RECURRENT = {"LSTM", "GRU", "RNN", "DynamicQuantizeLSTM"}


@dataclass(frozen=True)
class Work:
    """What one node does with a batch: multiply-accumulates, and the elements of activations that it reads and writes."""

    node: ir.Node
    macs: int
    elements: int


def works_of(graph: ir.Model, inputs: Batch) -> list[Work]:
    """The work of each convolution, product and recurrent layer of the main graph.

    Shapes come from one run of the graph, because inference stops at the runtime's own operators.
    """
    counted = [node for node in graph.graph if node.op_type in {*CONVOLUTIONS, *PRODUCTS, *RECURRENT}]
    shapes = _shapes(graph, counted, inputs) if counted else {}

    def elements(node: ir.Node) -> int:
        moved = [value for value in (*node.inputs, *node.outputs) if value is not None and tensor_of(value) is None]
        return sum(int(np.prod(shapes[value.name or ""])) for value in moved if value.name in shapes)

    return [Work(node, _node_macs(node, shapes), elements(node)) for node in counted]


def tensor_of(value: ir.Value) -> ir.TensorProtocol | None:
    """The constant that a value is, without reading it into memory; None where it is computed."""
    if value.const_value is not None:
        return value.const_value
    node = value.producer()
    if node is not None and node.op_type == "Constant" and "value" in node.attributes:
        return node.attributes["value"].as_tensor()
    return None


def _node_macs(node: ir.Node, shapes: dict[str, tuple[int, ...]]) -> int:
    def shape(value: ir.Value | None) -> tuple[int, ...]:
        return shapes[value.name or ""] if value is not None else ()

    def elements(value: ir.Value | None) -> int:
        return int(np.prod(shape(value), dtype=np.int64))

    if node.op_type in CONVOLUTIONS:
        weight = node.inputs[CONVOLUTIONS[node.op_type]]
        # Each output (for a transposed convolution, each input) element meets weight.numel / weight.shape[0] weights.
        meets = elements(node.inputs[0]) if node.op_type == "ConvTranspose" else elements(node.outputs[0])
        return meets * (elements(weight) // shape(weight)[0])
    if node.op_type in PRODUCTS:
        first, output = shape(node.inputs[0]), elements(node.outputs[0])
        transposed = node.op_type in ("Gemm", "QGemm", "FusedGemm") and bool(node.attributes.get_int("transA", 0))
        return output * (first[0] if transposed else first[-1])
    steps, samples = shape(node.inputs[0])[:2]  # recurrent layers: (sequence, batch, features) whatever the layout
    return steps * samples * (elements(node.inputs[1]) + elements(node.inputs[2]))


def _shapes(graph: ir.Model, nodes: list[ir.Node], inputs: Batch) -> dict[str, tuple[int, ...]]:
    wanted: dict[str, ir.Value] = {}
    for node in nodes:
        positions = [0, 1, 2] if node.op_type in RECURRENT else [0, {**CONVOLUTIONS, **PRODUCTS}[node.op_type]]
        values = [node.inputs[i] for i in positions]
        values += [] if node.op_type in RECURRENT else [node.outputs[0]]
        wanted |= {value.name or "": value for value in values if value is not None}
    found: dict[str, tuple[int, ...]] = {}
    for name, value in wanted.items():
        if (tensor := tensor_of(value)) is not None:
            found[name] = tuple(tensor.shape.numpy())
    missing = [name for name in wanted if name not in found]
    if missing:
        session = Session(graph, outputs=missing, optimize=False)
        fixed = session.fixed_batch
        fed = inputs if fixed is None else resized_batch(inputs, fixed)
        found |= {name: tuple(array.shape) for name, array in zip(missing, session.run(fed))}
    return found
