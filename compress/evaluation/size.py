"""Bytes on disk, parameters, multiply-accumulates, zeros, counted alike for modules and graphs.

Counting rules. Parameters: elements of a module's parameters; of a graph, elements of the constant tensors that its
operators compute with (weights in any width, biases, normalization), not shapes, axes, scales or zero points.
Multiply-accumulates (MACs): convolutions, matrix products and recurrent layers; a bias, an activation or a
normalization counts nothing. For one sample. Sparsity: zeros among the elements of weights, that is of parameters with
two or more dimensions; a quantized weight is zero where it equals its zero point.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from compress.batches import Batch, call, example_batch
from compress.errors import ModelError
from compress.evaluation.runners import Target, model_in
from compress.graph.works import tensor_of, works_of
from compress.onnx_files import give_back, read_onnx
from compress.state import evaluating, slow_attention

# Operator → positions of the inputs that only describe numbers: scales and zero points.
DESCRIBING = {
    "QuantizeLinear": {1, 2},
    "DequantizeLinear": {1, 2},
    "QLinearConv": {1, 2, 4, 5, 6, 7},
    "QLinearMatMul": {1, 2, 4, 5, 6, 7},
    "QGemm": {1, 2, 4, 5, 7, 8},
    "ConvInteger": {2, 3},
    "MatMulInteger": {2, 3},
    "MatMulIntegerToFloat": {2, 3, 4, 5},
    "DynamicQuantizeMatMul": {2, 3},
    "DynamicQuantizeLSTM": {8, 9, 10, 11},
}
ZERO_POINT_OF = {  # operator → (position of a weight, position of its zero point)
    "DequantizeLinear": (0, 2),
    "QLinearConv": (3, 5),
    "QLinearMatMul": (3, 5),
    "QGemm": (3, 5),
    "ConvInteger": (1, 3),
    "MatMulInteger": (1, 3),
    "MatMulIntegerToFloat": (1, 5),
    "DynamicQuantizeMatMul": (1, 3),
}


def size_bytes(path: str | Path, graph: ir.Model | None = None) -> int:
    """Return the bytes on disk of a model file, with the files that hold its external data; `graph` where it is read already.

    Raises:
        ModelError: there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"{str(path)!r} is not a file; nothing to weigh")
    total = path.stat().st_size
    if path.suffix != ".onnx":
        return total
    tensors = (value.const_value for value in _constants(graph or read_onnx(path)))
    beside = {Path(tensor.path) for tensor in tensors if isinstance(tensor, ir.ExternalTensor)}
    return total + sum(other.stat().st_size for other in beside)


def count_parameters(target: Target) -> int:
    """Count parameters by the rule at the top of this file."""
    if isinstance(target, nn.Module):
        return sum(parameter.numel() for parameter in target.parameters())
    opened = open_model_of(target)
    if isinstance(opened, nn.Module):
        return count_parameters(opened)
    return sum(_elements(value) for value in _weights(opened))


def sparsity(target: Target) -> float:
    """Return the fraction of weight elements that are zero, by the rule at the top of this file."""
    if isinstance(target, nn.Module):
        weights = [parameter for parameter in target.parameters() if parameter.dim() >= 2]
        zeros = sum(int((weight == 0).sum()) for weight in weights)
        return zeros / max(1, sum(weight.numel() for weight in weights))
    opened = open_model_of(target)
    if isinstance(opened, nn.Module):
        return sparsity(opened)
    zeros = total = 0
    for value in _weights(opened):
        array = _array(value)
        if array is not None and array.ndim >= 2:
            zeros += int((array == _zero_of(value, array)).sum())
            total += array.size
            give_back(value.const_value)
    return zeros / max(1, total)


def count_macs(target: Target, inputs: Any) -> int:
    """Count multiply-accumulates for one sample, by the rule at the top of this file."""
    opened, batch = target if isinstance(target, nn.Module) else open_model_of(target), example_batch(inputs)
    return _module_macs(opened, batch) if isinstance(opened, nn.Module) else _graph_macs(opened, batch)


def open_model_of(target: Target) -> ir.Model | nn.Module:
    """The graph or module of whatever can be measured; a file is read."""
    model = model_in(target)
    if isinstance(model, (ir.Model, nn.Module)):
        return model
    if Path(model).suffix == ".onnx":
        return read_onnx(Path(model))
    from compress.loading.models import open_model

    return open_model(str(model)).model


def _module_macs(module: nn.Module, inputs: Batch) -> int:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    # Without oneDNN and fused attention, so that all decomposes into matrix products that the counter sees.
    with contextlib.ExitStack() as stack, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # flags() touches a switch of other hardware, which warns
        stack.enter_context(slow_attention())
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        with evaluating(module), torch.backends.mkldnn.flags(enabled=False), FlopCounterMode(display=False) as counter:
            call(module, inputs)
    return round(counter.get_total_flops() / 2 / inputs.samples)


def _constants(graph: ir.Model) -> Iterator[ir.Value]:
    for part in graph.graphs():
        yield from part.initializers.values()


def _weights(graph: ir.Model) -> Iterator[ir.Value]:
    """Constants that operators compute with; each once, however often it is used."""
    constants = {id(value): value for value in _constants(graph)}
    for part in graph.graphs():
        for node in part:
            if node.op_type == "Constant":
                constants |= {id(node.outputs[0]): node.outputs[0]}
    for value in constants.values():
        uses = list(value.uses())
        describes = uses and all(use.idx in DESCRIBING.get(use.node.op_type, ()) for use in uses)
        if not describes and _dtype(value) not in (ir.DataType.INT64, ir.DataType.BOOL, ir.DataType.STRING, None):
            yield value


def _dtype(value: ir.Value) -> ir.DataType | None:
    tensor = tensor_of(value)
    return None if tensor is None else tensor.dtype


def _elements(value: ir.Value) -> int:
    tensor = tensor_of(value)
    return 0 if tensor is None else int(tensor.size)


def _array(value: ir.Value) -> np.ndarray | None:
    tensor = tensor_of(value)
    return None if tensor is None else tensor.numpy()


def _zero_of(weight: ir.Value, array: np.ndarray) -> np.ndarray | int:
    """The stored number that means 0.0; per channel it has the weight's rank."""
    for use in weight.uses():
        position, zero_at = ZERO_POINT_OF.get(use.node.op_type, (None, None))
        if position != use.idx or zero_at is None or len(use.node.inputs) <= zero_at:
            continue
        given = use.node.inputs[zero_at]
        zero = None if given is None else _array(given)
        if zero is None or zero.size == 1:
            return 0 if zero is None else int(zero.reshape(-1)[0])
        axis = use.node.attributes.get_int("axis", 1) if use.node.op_type == "DequantizeLinear" else 0
        if zero.ndim == 1 and array.shape[axis] == zero.size:
            shape = [1] * array.ndim
            shape[axis] = zero.size
            return zero.reshape(shape)
        return 0
    return 0


def _graph_macs(graph: ir.Model, inputs: Batch) -> int:
    fixed = graph.graph.inputs[0].shape[0] if graph.graph.inputs and graph.graph.inputs[0].shape else None
    total = sum(work.macs for work in works_of(graph, inputs))
    return total // (fixed if isinstance(fixed, int) else inputs.samples)
