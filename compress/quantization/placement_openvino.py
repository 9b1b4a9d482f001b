"""Where a graph is quantized for OpenVINO: pairs at the inputs of the layers with weights, never between what it fuses.

OpenVINO's CPU plugin fuses a convolution with the activation behind it (SiLU, hard-swish, sigmoid and others as they
stand) and with the addition behind that; a quantize/dequantize pair in between breaks the fusion. Its rules, from
NNCF's hardware setup for CPUs and OpenVINO's low-precision transformations:

* a convolution, MatMul or Gemm with a weight reads codes (u8, one scale for the tensor) and gives float;
* an addition behind such a layer has its pair on the other, the skip branch, alone; where both branches end in a
  layer, on the second;
* what moves values, a Concat (one scale for all its inputs), an average pool run on codes where they come and go as
  codes; all else is float.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import onnx_ir as ir

from compress.graph.folding import is_constant
from compress.quantization.kernels import CLIPS, HEAVY, STORED, has_weight
from compress.quantization.placement import Plan, Planner, Site, check_op_types

OP_TYPES = frozenset({"AveragePool", "Concat", "Conv", "ConvTranspose", "Gemm", "GlobalAveragePool", "MatMul"})
FUSED = CLIPS | {"Elu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mul", "PRelu", "Sigmoid"}


def plan_for_openvino(
    graph: ir.Model, *, op_types: Iterable[str] | None = None, exclude: Collection[ir.Node] = frozenset()
) -> Plan:
    """Decide where `graph` is quantized so that OpenVINO runs it in int8; changes nothing."""
    wanted = OP_TYPES if op_types is None else check_op_types(op_types)
    return _OpenVinoPlanner(graph, wanted, frozenset(exclude)).plan()


def plan_for_tensorrt(
    graph: ir.Model, *, op_types: Iterable[str] | None = None, exclude: Collection[ir.Node] = frozenset()
) -> Plan:
    """The same for TensorRT, which fuses the same patterns and has no layer that stores weights in int8 alone.

    Its own documentation asks for a pair on the residual branch of an addition and none between a convolution and its
    activation or addition (TensorRT issues 1992, 3270, 3629).
    """
    wanted = OP_TYPES if op_types is None else check_op_types(op_types)
    return _OpenVinoPlanner(graph, wanted - STORED, frozenset(exclude)).plan()


class _OpenVinoPlanner(Planner):
    def __init__(self, graph: ir.Model, op_types: frozenset[str], exclude: frozenset[ir.Node]) -> None:
        super().__init__(graph, op_types, exclude)
        for node in [node for node in self.sites if node.op_type == "MatMul" and not has_weight(node)]:
            # The second operand would have to be signed and symmetric; attention's products stay float.
            self.sites.pop(node)
            self.reasons[node] = "a product of two activations stays float"
        for node, site in self.sites.items():
            self.sites[node] = Site(node, node.outputs[0], None, None, site.weighted)  # nothing is swallowed
        self.skips = {node: index for node in self.order if (index := self._skip_of(node)) is not None}

    def _gives_codes(self, site: Site) -> bool:
        return self._wanted(site.output)

    def _skip_of(self, node: ir.Node) -> int | None:
        """Which input of a residual addition gets the pair; None where no layer with weights ends in it."""
        if node.op_type != "Add" or any(value is None or is_constant(value) for value in node.inputs):
            return None
        main = [self._ends_layer(value) for value in node.inputs]
        return None if not any(main) else 1 if main[0] else 0

    def _ends_layer(self, value: ir.Value | None) -> bool:
        """Whether this comes out of a quantized layer, through what fuses with it, read by the addition alone."""
        seen = 0
        while value is not None and len(value.uses()) == 1 and seen < 4:
            node = value.producer()
            if node is None:
                return False
            if node in self.sites and node.op_type in HEAVY:
                return True
            if node.op_type not in FUSED | {"Add"}:
                return False
            value, seen = (
                next((item for item in node.inputs if item is not None and not is_constant(item)), None),
                seen + 1,
            )
        return False

    def _reads(self, node: ir.Node) -> tuple[int, ...]:
        if node in self.skips:
            return (self.skips[node],)
        return super()._reads(node)

    def _tensors(self) -> list[ir.Value]:
        found = dict.fromkeys(super()._tensors())
        for node, index in self.skips.items():
            value = node.inputs[index]
            if value is not None and value.dtype in (None, ir.DataType.FLOAT):
                found[value] = None
        return list(found)
