"""Where a graph is quantized for OpenVINO: pairs at the inputs of the layers with weights, never between what it fuses.

OpenVINO's CPU plugin fuses a convolution with the activation behind it (SiLU, hard-swish, sigmoid and others as they
stand) and with the addition behind that; a quantize/dequantize pair in between breaks the fusion. Its rules, from
NNCF's hardware setup for CPUs and OpenVINO's low-precision transformations:

* a convolution, MatMul or Gemm with a weight reads codes (u8, one scale for the tensor) and gives float;
* an addition behind a convolution becomes part of it where the convolution ends in a quantize (that it may add in
  place), or the other branch is a convolution that does: so both branches have a pair, of two convolutions the second
  alone;
* what moves values, a Concat (one scale for all its inputs), an average pool run on codes where they come and go as
  codes, also behind an activation that is part of the layer; all else is float.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import onnx_ir as ir

from compress.graph.constants import is_constant
from compress.quantization.kernels import CLIPS, HEAVY, STORED, has_weight
from compress.quantization.placement import Plan, Planner, Site, check_op_types

OP_TYPES = frozenset({"AveragePool", "Concat", "Conv", "ConvTranspose", "Gemm", "GlobalAveragePool", "MatMul"})
# Steps that may follow a layer and become part of it, with the pieces in which exporters write activations.
ENDS = CLIPS | {"Add", "Div", "Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mul", "PRelu", "Sigmoid"}
LONGEST = 8  # steps of one activation with its layer


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
    return _TensorRtPlanner(graph, wanted - STORED, frozenset(exclude)).plan()


class _OpenVinoPlanner(Planner):
    def __init__(self, graph: ir.Model, op_types: frozenset[str], exclude: frozenset[ir.Node]) -> None:
        super().__init__(graph, op_types, exclude)
        for node in [node for node in self.sites if node.op_type == "MatMul" and not has_weight(node)]:
            # The second operand would have to be signed and symmetric; attention's products stay float.
            self.sites.pop(node)
            self.reasons[node] = "a product of two activations stays float"
        for node, site in self.sites.items():
            self.sites[node] = Site(node, node.outputs[0], None, None, site.weighted)  # nothing is swallowed
        self.skips = {node: indices for node in self.order if (indices := self._added_codes(node))}

    def _gives_codes(self, site: Site) -> bool:
        return self._wanted(site.output)

    def _produced(self) -> dict[ir.Value, ir.Node]:
        found = super()._produced()
        self.ends: set[ir.Value] = set()  # results of layers with what follows them, stored as codes
        for node in self.order:
            if node.op_type not in ENDS or node in self.sites or node in self.moving:
                continue
            value = node.outputs[0]
            if value.is_graph_output() or not self._wanted(value):
                continue
            if node in self.skips or self._layer_behind(value) is not None:
                found[value] = node
                self.ends.add(value)
        return found

    def _added_codes(self, node: ir.Node) -> tuple[int, ...]:
        """Which inputs of a residual addition get a pair; none where no convolution ends in it."""
        if node.op_type != "Add" or any(value is None or is_constant(value) for value in node.inputs):
            return ()
        layers = [self._layer_behind(value) for value in node.inputs if value is not None]
        ends = [
            layer is not None and layer.op_type == "Conv" and value is not None and len(value.uses()) == 1
            for layer, value in zip(layers, node.inputs)
        ]
        return self._of_addition(ends) if any(ends) else ()

    def _of_addition(self, ends: list[bool]) -> tuple[int, ...]:
        # Its matcher takes an addition for part of a convolution only behind a convolution that ends in a quantize.
        return (1,) if all(ends) else (0, 1)

    def _layer_behind(self, value: ir.Value) -> ir.Node | None:
        """The quantized layer whose result this is, changed by nothing but elementwise steps that read it alone."""
        chain: set[ir.Node] = set()
        open_values, sources = [value], set()
        while open_values and len(chain) <= LONGEST:
            node = open_values.pop().producer()
            if node is None:
                return None
            if node in chain:
                continue
            chain.add(node)
            if node in self.sites and node.op_type in HEAVY:
                sources.add(node)
            elif node.op_type in ENDS:
                open_values += [item for item in node.inputs if item is not None and not is_constant(item)]
            else:
                return None
        inner = [item for node in chain for item in node.outputs if item is not value]
        if open_values or len(sources) != 1 or any(use.node not in chain for item in inner for use in item.uses()):
            return None
        return next(iter(sources))

    def _reads(self, node: ir.Node) -> tuple[int, ...]:
        # What is stored as codes is read as codes by all: in float too it would be written twice.
        codes = {index for index, value in enumerate(node.inputs) if value in self.ends}
        return tuple(sorted(codes | set(self.skips.get(node) or super()._reads(node))))

    def _tensors(self) -> list[ir.Value]:
        found = dict.fromkeys(super()._tensors())
        for node, indices in self.skips.items():
            for value in (node.inputs[index] for index in indices):
                if value is not None and value.dtype in (None, ir.DataType.FLOAT):
                    found[value] = None
        found |= dict.fromkeys(value for node in self.order for value in node.outputs if value in self.ends)
        return list(found)


class _TensorRtPlanner(_OpenVinoPlanner):
    def _of_addition(self, ends: list[bool]) -> tuple[int, ...]:
        return (1,) if ends[0] else (0,)
