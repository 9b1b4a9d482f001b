"""Multiplications by a positive number, performed by a scale instead of a kernel.

    (q − z)·s · c  =  (q − z)·(c·s)        Mul(x, c), c > 0, x on the grid (s, z): the same codes on the grid (c·s, z)

No code is rounded again. Attention's scale on q and k, taken out of one packed layer, is such a number.
"""

from __future__ import annotations

import onnx_ir as ir

from compress.graph.constants import constant_array
from compress.graph.editing import consumers
from compress.quantization.arithmetic import SMALLEST_SCALE, Grid
from compress.quantization.placement import Plan


def carried_factors(plan: Plan) -> dict[ir.Node, float]:
    """The numbers that scales can carry, by their node, which multiplies by them in int8.

    Not where a Relu follows, whose work the range does, nor where the result shares its grid with other tensors.
    """
    found = {}
    for site in plan.sites:
        name = str(site.output.name)
        alone = plan.observed.get(plan.tensors.get(name, "")) == (name,)
        factor = _factor(site.node) if site.node.op_type == "Mul" and site.clip is None and alone else None
        if factor is not None:
            found[site.node] = factor[1]
    return found


def carried_grid(node: ir.Node, factor: float, plan: Plan, grids: dict[str, Grid]) -> Grid | None:
    """The grid of the result of a Mul of `carried_factors`; None where its scale would be too small."""
    found = _factor(node)
    source = grids[plan.tensors[str(found[0].name)]] if found is not None else None
    if source is None or source.scale * factor < SMALLEST_SCALE:
        return None
    return Grid(source.scale * factor, source.zero_point, source.dtype)


def carry(graph: ir.Model) -> None:
    """Take out, in place, every Mul whose result has its input's codes: the grids differ by the factor alone."""
    for node in list(graph.graph):
        readers = consumers(node.outputs[0]) if node.op_type == "Mul" and node.domain == "" else []
        found = _factor(node) if len(readers) == 1 and not node.outputs[0].is_graph_output() else None
        before = found[0].producer() if found is not None else None
        codes = before.inputs[0] if before is not None and before.op_type == "DequantizeLinear" else None
        if found is None or before is None or codes is None or readers[0].op_type != "QuantizeLinear":
            continue
        if _same_codes(before, readers[0], found[1]):
            readers[0].outputs[0].replace_all_uses_with(codes)
            graph.graph.remove([readers[0], node], safe=True)


def _factor(node: ir.Node) -> tuple[ir.Value, float] | None:
    """(x, c) where a Mul computes c·x with one positive number c, which may stand behind a DequantizeLinear."""
    for x, constant in ((node.inputs[0], node.inputs[1]), (node.inputs[1], node.inputs[0])):
        factor = _number(constant)
        if x is None or constant is None or factor is None or _number(x) is not None:
            continue
        wider = x.shape is None or constant.shape is None or len(constant.shape) > len(x.shape)
        return (x, factor) if factor > 0 and not wider else None
    return None


def _number(value: ir.Value | None) -> float | None:
    array = constant_array(value)
    if array is None and value is not None:
        node = value.producer()
        if node is None or node.op_type != "DequantizeLinear":
            return None
        codes, scale = constant_array(node.inputs[0]), constant_array(node.inputs[1])
        zero = constant_array(node.inputs[2]) if len(node.inputs) > 2 else None
        if codes is None or scale is None or codes.size != 1 or scale.size != 1:
            return None
        array = (codes.astype("float32") - (0 if zero is None else zero.astype("float32"))) * scale
    return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None


def _same_codes(before: ir.Node, after: ir.Node, factor: float) -> bool:
    """Whether what `before` dequantizes, times `factor`, is quantized by `after` to the same codes."""
    arrays = [constant_array(value) for node in (before, after) for value in node.inputs[1:3]]
    if len(arrays) != 4 or any(array is None or array.size != 1 for array in arrays):
        return False
    old, first, new, second = (array.reshape(-1)[0] for array in arrays if array is not None)
    return first == second and first.dtype == second.dtype and abs(float(old) * factor / float(new) - 1) < 1e-5
