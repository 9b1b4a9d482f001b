"""Weights in blocks of four or eight bits, activations in float: for models whose time goes into reading weights.

    MatMul(x, W)   →  MatMul(x, DequantizeLinear(Wq, s, axis 0, block_size B))        W (K, N), s (K/B, N)
    Gemm(x, W, b)  →  the same, W turned where it was transposed
    Gather(E, i)   →  Cast(Gather(Eq, i)) · Gather(sE, i)                             one scale per row

All standard ONNX (opset 21); ONNX Runtime fuses the first two to `MatMulNBits`, which never widens the whole weight. Every
block's largest weight takes the code −8 (−128), so that all sixteen codes are used, and its scale is shrunk to where the
squared error is least. With data, rounding feeds its errors forward (`repairs/rounding.py`); without, it is to nearest.

A tensor is read, quantized and dropped before the next, and the codes are made when they are written, so that memory
follows the largest tensor of a file whose weights lie beside it, not the whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import ml_dtypes
import numpy as np
import onnx_ir as ir
from torch import Tensor, nn

from compress.counting import counted
from compress.errors import QuantizationError
from compress.given import batches_of
from compress.graph.constants import constant_tensor
from compress.graph.editing import Namer, name_everything, remove_unused
from compress.graph.exporting import to_graph
from compress.graph.naming import layer_of, matching_nodes
from compress.graph.opset import raise_opset
from compress.onnx_files import give_back
from compress.options import spelled_out
from compress.quantization.kernels import number
from compress.quantization.options import WeightOnlyFields, WeightOnlyOptions
from compress.quantization.repairs.judge import take_samples
from compress.quantization.repairs.rounding import LARGEST, Products, feed_back, fill
from compress.quantization.storage import OPSET, narrow_codes, store_in_four_bits, store_tables, tables_of
from compress.steps import Change, Step

SHARES = np.linspace(1.0, 0.7, 13, dtype=np.float32)  # of the widest scale, tried for each block
CODES = {4: (-8, 7), 8: (-128, 127)}
SMALLEST_STEP = float(np.finfo(np.float32).tiny)
SMALLEST = 1024  # numbers in a weight; scales and a node eat what fewer would save


@dataclass(frozen=True)
class _Layer:
    node: ir.Node
    weight: ir.TensorProtocol
    turned: bool  # stored as (N, K)

    def matrix(self) -> np.ndarray:
        """The weight as float32 (K, N)."""
        array = np.asarray(self.weight.numpy(), np.float32)
        return np.ascontiguousarray(array.T) if self.turned else array


def quantize_weight_only(
    model: nn.Module | ir.Model | str | Path,
    calibration: Iterable[Any] | None = None,
    options: WeightOnlyOptions | None = None,
    *,
    example_inputs: Sequence[Tensor] | None = None,
    threads: int | None = None,
    **fields: Unpack[WeightOnlyFields],
) -> Step:
    """Store the weights of linear layers and tables in blocks of 4 or 8 bits; activations stay in float.

    Args:
        calibration: batches to round with error feedback on; None rounds to the nearest.
        options: how; `fields` are those of `WeightOnlyOptions` spelled out.

    Raises:
        QuantizationError: bits or block that cannot be; nothing to quantize.
        UnsupportedOperatorError: an opset too old that cannot be raised to 21.
    """
    options = spelled_out(WeightOnlyOptions, options, fields, "quantize_weight_only")
    graph = to_graph(model, example_inputs)
    name_everything(graph)
    raise_opset(graph, OPSET)
    left_out = matching_nodes(graph, options.exclude) if options.exclude else set()
    layers, changes = [], []
    for node in graph.graph.all_nodes():
        reason = _refusal(node, graph, left_out, options.block)
        if reason is None:
            continue
        if reason:
            changes.append(Change(layer_of(node), f"{node.op_type} stays float", reason, skipped=True))
        else:
            layers.append(_layer(node))
    products = _products(graph, layers, calibration, threads) if calibration is not None else {}
    namer = Namer(graph)
    for layer in layers:
        changes.append(_store(graph, layer, options, products.pop(str(layer.node.name), None), namer))
    tables = [str(node.name) for node in tables_of(graph) if node not in left_out] if options.tables else []
    changes += store_tables(graph, tables, bits=options.bits)
    remove_unused(graph)
    changes += store_in_four_bits(graph, narrow_codes(graph))
    if not layers and not tables:
        kinds = ", ".join(sorted({node.op_type for node in graph.graph})[:8])
        kept = [change for change in changes if change.skipped and change.reason != "excluded by name"]
        why = f"; {kept[0].layer}: {kept[0].reason}" if kept else ""
        raise QuantizationError(f"no MatMul, Gemm or table of this graph can be stored in blocks: it has {kinds}{why}")
    return Step("quantize weight-only", graph, tuple(changes), (_note(options, len(layers), calibration is not None),))


def _note(options: WeightOnlyOptions, count: int, fed_back: bool) -> str:
    how = "rounded with error feedback" if fed_back else "rounded to the nearest (with --data, by error feedback)"
    return f"{counted(count, 'weight')} in {options.bits} bits, a scale for each block of {options.block}, {how}"


def _refusal(node: ir.Node, graph: ir.Model, left_out: set[ir.Node], block: int) -> str | None:
    """Why this layer stays in float; empty where it need not; None where it is no such layer."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in ("MatMul", "Gemm") or len(node.inputs) < 2:
        return None
    weight = constant_tensor(node.inputs[1])
    if weight is None or len(weight.shape) != 2 or weight.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
        return None
    if node in left_out:
        return "excluded by name"
    if weight.size < SMALLEST:
        return f"its weight is too small ({weight.size} numbers) for blocks to shrink the file"
    if node.graph is not graph.graph:
        return "it lies inside a loop or a branch"
    if node.op_type == "Gemm" and (number(node, "transA", 0), number(node, "alpha", 1.0), number(node, "beta", 1.0)) != (
        0, 1.0, 1.0,
    ):  # fmt: skip
        return "Gemm with alpha, beta or transA has no kernel for blocks"
    inputs = _length(weight, 1 if _turned(node) else 0)
    return "" if inputs % block == 0 else f"its {inputs} inputs are no multiple of the block of {block}"


def _turned(node: ir.Node) -> bool:
    return node.op_type == "Gemm" and bool(number(node, "transB", 0))


def _layer(node: ir.Node) -> _Layer:
    weight = constant_tensor(node.inputs[1])
    assert weight is not None
    return _Layer(node, weight, _turned(node))


def _products(
    graph: ir.Model, layers: Sequence[_Layer], calibration: Iterable[Any], threads: int | None
) -> dict[str, Products]:
    """E[x·xᵀ] of the layers whose inputs are few enough, by node name."""
    found: dict[str, Products] = {}
    for layer in layers:
        size = _length(layer.weight, 1 if layer.turned else 0)
        source = layer.node.inputs[0]
        if size <= LARGEST and source is not None and source.name:
            found[str(layer.node.name)] = Products(layer.node, size, 1, centred=False)
    fill(list(found.values()), graph, take_samples(batches_of(calibration), 128), threads)
    return found


def _store(
    graph: ir.Model, layer: _Layer, options: WeightOnlyOptions, products: Products | None, namer: Namer
) -> Change:
    """Put codes, scales and a DequantizeLinear in the place of one weight, in place."""
    node, old = layer.node, layer.node.inputs[1]
    assert old is not None
    matrix = layer.matrix()
    scales = block_scales(matrix, options.block, options.bits)
    codes = block_codes(matrix, scales, options.block, options.bits)
    if products is not None:
        codes = _fed_back(matrix, scales, options, products)
    dtype = ml_dtypes.int4 if options.bits == 4 else np.int8
    give_back(layer.weight)
    parts = [namer.initializer(graph, f"{old.name}_codes", codes.astype(dtype))]
    parts.append(namer.initializer(graph, f"{old.name}_scale", scales.astype(layer.weight.dtype.numpy())))
    attributes = {"axis": 0, "block_size": options.block}
    widen = ir.node("DequantizeLinear", parts, attributes, name=namer(f"{node.name}/DQ"))
    result = widen.outputs[0]
    result.name, result.dtype, result.shape = namer(f"{old.name}_dq"), layer.weight.dtype, ir.Shape(matrix.shape)
    graph.graph.insert_before(node, widen)
    node.replace_input_with(1, result)
    if layer.turned:
        node.attributes["transB"] = ir.AttrInt64("transB", 0)
    values = {"node": node.name or "", "op_type": node.op_type, "weight_bits": options.bits, "block": options.block}
    return Change(layer_of(node), f"weight stored in {options.bits} bits by blocks of {options.block}", values=values)


def block_scales(matrix: np.ndarray, block: int, bits: int) -> np.ndarray:
    """(K/block, N) scales of least squared error for a weight (K, N); signed, so that the largest weight is code −2^(bits−1)."""
    low, high = CODES[bits]
    blocks = matrix.reshape(-1, block, matrix.shape[1])
    place = np.abs(blocks).argmax(1)[:, None]
    widest = np.take_along_axis(blocks, place, 1)[:, 0] / low
    # A block of zeros; a larger bound would turn small weights into zeros, or into codes of ±1.
    widest = np.where(np.abs(widest) < SMALLEST_STEP, np.float32(SMALLEST_STEP), widest)
    best, least = widest.copy(), np.full(widest.shape, np.inf, np.float32)
    for share in SHARES if bits == 4 else SHARES[:1]:
        scale = (share * widest)[:, None]
        error = np.square(np.clip(np.rint(blocks / scale), low, high) * scale - blocks).sum(1)
        best, least = np.where(error < least, scale[:, 0], best), np.minimum(error, least)
    return best.astype(np.float32)


def block_codes(matrix: np.ndarray, scales: np.ndarray, block: int, bits: int) -> np.ndarray:
    """Codes to the nearest, (K, N) int8."""
    low, high = CODES[bits]
    blocks = matrix.reshape(-1, block, matrix.shape[1])
    return np.clip(np.rint(blocks / scales[:, None]), low, high).astype(np.int8).reshape(matrix.shape)


def _fed_back(matrix: np.ndarray, scales: np.ndarray, options: WeightOnlyOptions, products: Products) -> np.ndarray:
    low, high = CODES[options.bits]
    steps = np.repeat(scales, options.block, axis=0).T  # (N, K)
    rounded = feed_back(np.ascontiguousarray(matrix.T), steps, products.mean(0), high, low=low)
    return np.clip(np.rint(rounded / steps), low, high).astype(np.int8).T


def _length(weight: ir.TensorProtocol, axis: int) -> int:
    """One dimension of a stored tensor, which has no free ones."""
    length = weight.shape[axis]
    assert isinstance(length, int)
    return length
