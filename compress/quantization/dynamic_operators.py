"""How each operator runs, or is stored, with int8 or float16 weights: one function each.

Run in int8 (the activation is quantized at run time, on its own range, by DynamicQuantizeLinear):

    MatMul(x, W)     →  q, s, z = DynamicQuantizeLinear(x);  Cast(MatMulInteger(q, Wq, z, zw)) · (s · sw)
    Gemm(x, W, C)    →  the same with W' = α·Wᵀ, then + β·C
    LSTM             →  com.microsoft.DynamicQuantizeLSTM, W and R transposed as it wants them

Stored in int8, run in float (ONNX Runtime has no int8 kernel, but folds Cast and Mul of a constant when it loads the
file, where it would run a DequantizeLinear anew each time):

    weights w        →  Cast(wq) · sw
    Gather(E, i)     →  Cast(Gather(Eq, i)) · Gather(sE, i)      one scale per row; only the rows read are widened

Weights are symmetric with a scale per output channel. int8 codes lie in ±127 around 0, uint8 codes in ±127 around 128.
Where the kernel adds u8·s8 products in pairs of 16 saturating bits (x86 without VNNI), int8 codes are chosen so that no
pair overflows (`pairs.py`); its u8·u8 kernel has no such limit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from compress.counting import counted
from compress.graph.constants import constant_array
from compress.graph.editing import Namer, replace_node
from compress.quantization.arithmetic import scales_of_least_error, symmetric_scales, too_small
from compress.quantization.pairs import pair_scales, shrink_pairs
from compress.quantization.targets import weight_limit
from compress.quantization.weights import LIMIT as NOTE

LIMIT = 127  # largest magnitude of a code
MICROSOFT = "com.microsoft"
# Below this a table or weight is not worth the extra nodes: scales and nodes eat what the codes save.
SMALLEST_ELEMENTS = 1024
_FLOAT16_SMALLEST = 2.0**-14  # of the numbers that have all their bits
_FLOAT16_LARGEST = 65504.0


class Refused(Exception):
    """Why a node stays in float."""


@dataclass
class Rewriter:
    """What the rewriting of one graph shares: the codes' type, fresh names, quantized inputs and weights."""

    graph: ir.Model
    weight_type: str  # "int8", "uint8" or "float16"
    pairs_saturate: bool  # whether the int8 kernel adds products in pairs of 16 bits
    name: Namer
    bits: int = 8  # of a code
    inputs: dict[tuple[Any, ir.Value], tuple[ir.Value, ir.Value, ir.Value]] = field(default_factory=dict)
    stored: dict[tuple[ir.Value, str], ir.Value] = field(default_factory=dict)

    def initializer(self, name: str, array: np.ndarray) -> ir.Value:
        return self.name.initializer(self.graph, name, np.ascontiguousarray(array).reshape(array.shape))

    def codes(self, name: str, array: np.ndarray) -> ir.Value:
        """An initializer of codes, with a note of how narrow they are."""
        value = self.initializer(name, array)
        value.metadata_props[NOTE] = str(weight_limit(self.bits))
        return value

    def node(self, op_type: str, inputs: list[ir.Value | None], name: str, **options: object) -> ir.Node:
        """A node whose outputs, and itself, bear `name`."""
        made = ir.node(op_type, inputs, name=self.name(name), **options)  # type: ignore[arg-type]  # attributes of any operator
        for value in made.outputs:
            value.name = self.name(f"{name}_{op_type}")
        return made

    def multiplied(self, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
        """(codes, scales, zero point) of a matrix (inputs, outputs) that an int8 kernel multiplies with."""
        if self.weight_type == "uint8" or not self.pairs_saturate or self.bits < 8:  # narrow codes never overflow
            return self.stored_codes(weight, axis=1)
        rows = np.ascontiguousarray(weight.T, dtype=np.float32)
        scales = pair_scales(rows)
        codes = shrink_pairs(np.clip(np.rint(rows / scales[:, None]), -LIMIT, LIMIT).astype(np.int32))
        return codes.T.astype(np.int8), scales, 0

    def stored_codes(self, weight: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray, int]:
        """(codes, scales along `axis`, zero point) of any weight: 255 steps, max|w| / 127 each."""
        limit = weight_limit(self.bits)
        scales = symmetric_scales(weight, axis, limit) if self.bits > 4 else scales_of_least_error(weight, axis, limit)
        shape = [1] * weight.ndim
        shape[axis] = -1
        rounded = np.clip(np.rint(np.asarray(weight, np.float32) / scales.reshape(shape)), -limit, limit)
        if self.weight_type == "uint8":
            return (rounded + 128).astype(np.uint8), scales, 128
        return rounded.astype(np.int8), scales, 0


def run_matmul(rewriter: Rewriter, node: ir.Node) -> str:
    weight = _weight(node, 1)
    if weight.ndim != 2:
        raise Refused(f"its weight has {counted(weight.ndim, 'dimension')}; the int8 kernel takes matrices")
    made, result = _integer_matmul(rewriter, node, weight)
    replace_node(node, made, [result])
    return "runs in int8 (MatMulInteger)"


def run_gemm(rewriter: Rewriter, node: ir.Node) -> str:
    if node.attributes.get_int("transA", 0):
        raise Refused("its input is transposed (transA), which the int8 kernel does not do")
    weight = _weight(node, 1)
    weight = weight.T if node.attributes.get_int("transB", 0) else weight
    alpha, beta = node.attributes.get_float("alpha", 1.0), node.attributes.get_float("beta", 1.0)
    addend = node.inputs[2] if len(node.inputs) > 2 else None
    if addend is not None and beta != 1.0:
        bias = constant_array(addend)
        if bias is None:
            raise Refused(f"its third input is computed and multiplied by beta = {beta}")
        addend = rewriter.initializer(f"{addend.name}_times_beta", bias * np.float32(beta))
    made, result = _integer_matmul(rewriter, node, weight * np.float32(alpha) if alpha != 1.0 else weight)
    if addend is not None:
        made.append(rewriter.node("Add", [result, addend], f"{node.name}_bias"))
        result = made[-1].outputs[0]
    replace_node(node, made, [result])
    return "runs in int8 (MatMulInteger)"


def run_lstm(rewriter: Rewriter, node: ir.Node) -> str:
    if node.attributes.get_int("layout", 0):
        raise Refused("its layout is batch-first, which DynamicQuantizeLSTM does not take")
    inputs = [*node.inputs, *[None] * (8 - len(node.inputs))]
    packed: list[ir.Value | None] = []
    codes = []
    for index, role in ((1, "W"), (2, "R")):
        # (directions, 4·hidden, inputs) as ONNX has it; the kernel wants inputs before hidden units.
        weight = np.transpose(_weight(node, index), (0, 2, 1))
        each = [rewriter.multiplied(direction) for direction in weight]
        scales = np.stack([scale for _, scale, _ in each])
        zero = np.full(scales.shape, each[0][2], each[0][0].dtype)
        codes.append(rewriter.codes(f"{node.name}_{role}_codes", np.stack([code for code, _, _ in each])))
        packed.append(rewriter.initializer(f"{node.name}_{role}_scale", scales))
        packed.append(rewriter.initializer(f"{node.name}_{role}_zero", zero))
    attributes = {name: value for name, value in node.attributes.items() if name != "layout"}
    made = ir.Node(
        MICROSOFT,
        "DynamicQuantizeLSTM",
        [inputs[0], *codes, *inputs[3:8], *packed],
        list(attributes.values()),
        num_outputs=len(node.outputs),
        name=node.name,
    )
    replace_node(node, [made], made.outputs)
    rewriter.graph.opset_imports.setdefault(MICROSOFT, 1)
    return "runs in int8 (DynamicQuantizeLSTM)"


def store_recurrent(rewriter: Rewriter, node: ir.Node) -> str:
    for index in (1, 2):
        _weight(node, index)  # both or none
    for index in (1, 2):
        # One scale per direction and gate row: (directions · gates · hidden, inputs) for the codes.
        _store(rewriter, node, index, rows=2)
    return f"weights stored in {rewriter.weight_type}"


def store_convolution(rewriter: Rewriter, node: ir.Node) -> str:
    _store(rewriter, node, 1, rows=1)
    return f"weights stored in {rewriter.weight_type}"


def store_embedding(rewriter: Rewriter, node: ir.Node) -> str:
    table = table_of(node)
    codes, scales, zero = rewriter.stored_codes(table.reshape(len(table), -1), axis=0)
    codes = codes.reshape(table.shape)
    scale_shape = (len(table), *[1] * (table.ndim - 1))
    label = node.inputs[0].name  # type: ignore[union-attr]  # such a node has that input
    stored = _once(rewriter, node.inputs[0], "codes", lambda: rewriter.codes(f"{label}_codes", codes))
    scale = _once(
        rewriter, node.inputs[0], "scale", lambda: rewriter.initializer(f"{label}_scale", scales.reshape(scale_shape))
    )
    rows = rewriter.node("Gather", [stored, node.inputs[1]], f"{node.name}_codes", attributes={"axis": 0})
    units = rewriter.node("Gather", [scale, node.inputs[1]], f"{node.name}_scales", attributes={"axis": 0})
    made = [rows, *_widened(rewriter, rows.outputs[0], zero, node.name or ""), units]
    made.append(rewriter.node("Mul", [made[-2].outputs[0], units.outputs[0]], node.name or "Gather"))
    replace_node(node, made, [made[-1].outputs[0]])
    kind = rewriter.weight_type if rewriter.bits == 8 else f"{rewriter.bits} bits"
    return f"table stored in {kind}, one scale per row"


def halve_weights(rewriter: Rewriter, node: ir.Node) -> str:
    """float16 for whatever weights the node has; the Cast back is folded when the file is loaded."""
    indices = (0,) if node.op_type == "Gather" else (1, 2) if node.op_type in ("LSTM", "GRU", "RNN") else (1,)
    arrays = [table_of(node) if node.op_type == "Gather" else _weight(node, index) for index in indices]
    if any(np.abs(array).max(initial=0) > _FLOAT16_LARGEST for array in arrays):
        raise Refused("a weight is larger than the largest float16, 65504")
    if any(0 < np.abs(array).max(initial=0) < _FLOAT16_SMALLEST for array in arrays):
        raise Refused(f"its weights are all below {_FLOAT16_SMALLEST:.0e}, where float16 loses bits")
    if node.op_type == "Gather":
        # Widen the rows read, not the table: a Cast of the whole table would be folded into a float one.
        stored = _once(rewriter, node.inputs[0], "half", lambda: _half(rewriter, node.inputs[0], arrays[0]))
        rows = rewriter.node("Gather", [stored, node.inputs[1]], f"{node.name}_rows", attributes={"axis": 0})
        cast = rewriter.node("Cast", [rows.outputs[0]], node.name or "Gather", attributes={"to": ir.DataType.FLOAT})
        replace_node(node, [rows, cast], [cast.outputs[0]])
        return "table stored in float16"
    for index, array in zip(indices, arrays):
        weight = node.inputs[index]
        assert weight is not None

        def widened(weight: ir.Value = weight, array: np.ndarray = array) -> ir.Value:
            half = _half(rewriter, weight, array)
            cast = rewriter.node("Cast", [half], f"{weight.name}_widened", attributes={"to": ir.DataType.FLOAT})
            _prepend(rewriter, [cast])
            return cast.outputs[0]

        node.replace_input_with(index, _once(rewriter, weight, "half", widened))
    return "weights stored in float16"


INT8: dict[str, Callable[[Rewriter, ir.Node], str]] = {
    "Conv": store_convolution,
    "ConvTranspose": store_convolution,
    "GRU": store_recurrent,
    "Gather": store_embedding,
    "Gemm": run_gemm,
    "LSTM": run_lstm,
    "MatMul": run_matmul,
    "RNN": store_recurrent,
}
FLOAT16 = dict.fromkeys(INT8, halve_weights)


def _weight(node: ir.Node, index: int) -> np.ndarray:
    value = node.inputs[index] if index < len(node.inputs) else None
    array = constant_array(value)
    if array is None:
        raise Refused(
            "both its inputs are computed while running, so it has no weights"
            if index == 1
            else "its weights are computed while running"
        )
    if array.dtype != np.float32:
        raise Refused(f"its weights are {array.dtype}, not float32")
    if not array.size:
        raise Refused("its weights are empty")
    if not np.isfinite(array).all():
        raise Refused("its weights hold NaN or infinity")
    if reason := too_small(array):
        raise Refused(reason)
    return array


def table_of(node: ir.Node) -> np.ndarray:
    array = constant_array(node.inputs[0])
    if array is None:
        raise Refused("it reads rows of a computed tensor, not of a table")
    if array.dtype != np.float32:
        raise Refused(f"its table is {array.dtype}, not float32")
    if array.ndim < 2 or node.attributes.get_int("axis", 0) % array.ndim:
        raise Refused("it does not read rows of a table (axis 0 of a matrix)")
    if array.size < SMALLEST_ELEMENTS or array[0].size < 2:
        raise Refused(f"its table is too small ({array.size} numbers) for int8 to shrink the file")
    return array


def _integer_matmul(rewriter: Rewriter, node: ir.Node, weight: np.ndarray) -> tuple[list[ir.Node], ir.Value]:
    source, matrix = node.inputs[0], node.inputs[1]
    assert source is not None and matrix is not None
    if source.dtype not in (None, ir.DataType.FLOAT):
        raise Refused(f"its input is {source.dtype.name.lower()}, not float32")
    name = node.name or node.op_type
    codes, scales, zero = rewriter.multiplied(weight)
    made = []
    place = node.graph, source  # what is made inside a branch is not seen outside
    if place not in rewriter.inputs:  # queries, keys and values are all made from one tensor
        quantize = rewriter.node("DynamicQuantizeLinear", [source], f"{source.name}_quantize", num_outputs=3)
        rewriter.inputs[place] = (quantize.outputs[0], quantize.outputs[1], quantize.outputs[2])
        made.append(quantize)
    quantized, scale, zero_point = rewriter.inputs[place]
    key = f"{node.op_type} {node.attributes.get_int('transB', 0)} {node.attributes.get_float('alpha', 1.0)}"
    stored = _once(rewriter, matrix, f"codes {key}", lambda: rewriter.codes(f"{matrix.name}_codes", codes))
    unit = _once(rewriter, matrix, f"scale {key}", lambda: rewriter.initializer(f"{matrix.name}_scale", scales))
    offset = _once(
        rewriter,
        matrix,
        f"zero {key}",
        lambda: rewriter.initializer(f"{matrix.name}_zero", np.array(zero, codes.dtype)),
    )
    product = rewriter.node("MatMulInteger", [quantized, stored, zero_point, offset], name)
    cast = rewriter.node("Cast", [product.outputs[0]], f"{name}_cast", attributes={"to": ir.DataType.FLOAT})
    units = rewriter.node("Mul", [scale, unit], f"{name}_scales")
    result = rewriter.node("Mul", [cast.outputs[0], units.outputs[0]], f"{name}_scaled")
    return [*made, product, cast, units, result], result.outputs[0]


def _store(rewriter: Rewriter, node: ir.Node, index: int, *, rows: int) -> None:
    """Replace a weight by Cast(codes) · scales, with one scale for each index of its first `rows` dimensions."""
    weight, value = _weight(node, index), node.inputs[index]
    assert value is not None
    if weight.size < SMALLEST_ELEMENTS:
        raise Refused(f"its weight is too small ({weight.size} numbers) for int8 to shrink the file")

    def widened() -> ir.Value:
        lead = weight.shape[:rows]
        codes, scales, zero = rewriter.stored_codes(weight.reshape(int(np.prod(lead)), -1), axis=0)
        stored = rewriter.codes(f"{value.name}_codes", codes.reshape(weight.shape))
        scale = rewriter.initializer(f"{value.name}_scale", scales.reshape(*lead, *[1] * (weight.ndim - rows)))
        made = _widened(rewriter, stored, zero, f"{value.name}")
        made.append(rewriter.node("Mul", [made[-1].outputs[0], scale], f"{value.name}_widened"))
        _prepend(rewriter, made)
        return made[-1].outputs[0]

    node.replace_input_with(index, _once(rewriter, value, "stored", widened))


def _widened(rewriter: Rewriter, codes: ir.Value, zero: int, name: str) -> list[ir.Node]:
    """Codes as float32, their zero point taken off."""
    cast = rewriter.node("Cast", [codes], f"{name}_cast", attributes={"to": ir.DataType.FLOAT})
    if not zero:
        return [cast]
    offset = rewriter.initializer(f"{name}_zero", np.array(zero, np.float32))
    return [cast, rewriter.node("Sub", [cast.outputs[0], offset], f"{name}_centred")]


def _half(rewriter: Rewriter, value: ir.Value | None, array: np.ndarray) -> ir.Value:
    assert value is not None
    return rewriter.initializer(f"{value.name}_float16", array.astype(np.float16))


def _once(rewriter: Rewriter, value: ir.Value | None, role: str, make: Callable[[], ir.Value]) -> ir.Value:
    """Weights that several nodes share are quantized once."""
    assert value is not None
    key = (value, role)
    if key not in rewriter.stored:
        rewriter.stored[key] = make()
    return rewriter.stored[key]


def _prepend(rewriter: Rewriter, nodes: list[ir.Node]) -> None:
    first = next(iter(rewriter.graph.graph))
    rewriter.graph.graph.insert_before(first, nodes)
