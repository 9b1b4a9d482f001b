"""A plan written into its graph: quantize/dequantize pairs in, redundant clips out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from compress.graph.constants import constant_array
from compress.graph.editing import Namer, remove_unused
from compress.quantization.arithmetic import Grid, scales_of_least_error, symmetric_scales
from compress.quantization.kernels import clip_bounds, weight_axis
from compress.quantization.pairs import as_rows, has_pairs, pair_scales
from compress.quantization.placement import Plan, Site
from compress.quantization.targets import Target, weight_limit
from compress.quantization.weights import LIMIT

NARROW = 4  # bits from which a weight's scale is chosen by its error: there the largest weight is worth clipping
CLIP = "compress.clip"  # note on an activation's QuantizeLinear: its range stands for this clip, "low high"


@dataclass(frozen=True)
class WeightOptions:
    """How weights are put on their grid.

    `bits` is for every layer, `layer_bits` for single ones by node name. Where the target's kernels
    add u8·s8 products in 16 bits, the scales keep every pair inside them (`pairs.py`); `exact_pairs`
    so that no code at all has to be shrunk for it, which is what training must start from.
    """

    target: Target
    per_channel: bool = True
    bits: int = 8
    layer_bits: Mapping[str, int] = field(default_factory=dict)
    exact_pairs: bool = False
    fixed: Mapping[str, np.ndarray] = field(default_factory=dict)  # scales that a repair has settled, by node name

    def bits_of(self, node: ir.Node) -> int:
        if str(node.name) in self.layer_bits:
            return self.layer_bits[str(node.name)]
        return self.bits

    @property
    def narrowest(self) -> int:
        return min((self.bits, *self.layer_bits.values()))

    def in_pairs(self, node: ir.Node) -> bool:
        """Whether this layer's codes must fit in pairs; seven bits always do."""
        return self.target.pairs_saturate and has_pairs(node) and self.bits_of(node) == 8

    def scales(self, node: ir.Node, weight: np.ndarray, axis: int | None) -> np.ndarray:
        if str(node.name) in self.fixed:
            return self.fixed[str(node.name)]
        if self.in_pairs(node):
            return pair_scales(as_rows(node, weight), per_row=axis is not None, exact=self.exact_pairs)
        bits = self.bits_of(node)
        choose = scales_of_least_error if bits <= NARROW else symmetric_scales
        return choose(weight, axis, weight_limit(bits))


def insert(graph: ir.Model, plan: Plan, grids: Mapping[str, Grid], weights: WeightOptions) -> None:
    """Apply `plan`, made for `graph` itself, in place. `grids` has one entry for each group of the plan."""
    writer = _Writer(graph, plan, grids, weights)
    writer.activations()
    writer.constants()
    writer.weights()
    remove_unused(graph)


class _Writer:
    def __init__(self, graph: ir.Model, plan: Plan, grids: Mapping[str, Grid], weights: WeightOptions) -> None:
        self.graph, self.plan, self.grids, self.options = graph, plan, grids, weights
        self.namer = Namer(graph)
        self.first = graph.graph[0]  # constants are dequantized in front of it
        self.parameters: dict[str, tuple[ir.Value, ir.Value]] = {}

    def activations(self) -> None:
        sites = {site.output: site for site in self.plan.sites}
        moved = {value for node in self.plan.moving for value in node.outputs}
        values = {value.name: value for node in self.graph.graph for value in node.outputs}
        values |= {value.name: value for value in self.graph.graph.inputs}
        for name, group in self.plan.tensors.items():
            value = values[name]
            self._pair(value, group, sites.get(value), made_in_int8=value in sites or value in moved)

    def _pair(self, value: ir.Value, group: str, site: Site | None, *, made_in_int8: bool) -> None:
        readers = [
            (node, index) for node, index in value.uses() if made_in_int8 or index in self.plan.reads.get(node, ())
        ]
        is_output = made_in_int8 and value.is_graph_output()
        bounds = None
        if site is not None and site.clip is not None and _redundant(site.clip, self.grids[group]):
            bounds, value = clip_bounds(site.clip), self._without_clip(site.clip)
        scale, zero = self._parameters(group)
        name = str(value.name)
        quantize = ir.node("QuantizeLinear", [value, scale, zero], name=self.namer(f"{name}/Q"))
        if bounds is not None:
            quantize.metadata_props[CLIP] = f"{bounds[0]} {bounds[1]}"
        dequantize = ir.node("DequantizeLinear", [quantize.outputs[0], scale, zero], name=self.namer(f"{name}/DQ"))
        self._describe(quantize.outputs[0], f"{name}_q", zero.dtype, value.shape)
        self._describe(dequantize.outputs[0], f"{name}_dq", ir.DataType.FLOAT, value.shape)
        producer = value.producer()
        if producer is None:
            self.graph.graph.insert_before(self.first, [quantize, dequantize])
        else:
            self.graph.graph.insert_after(producer, [quantize, dequantize])
        for node, index in readers:
            node.replace_input_with(index, dequantize.outputs[0])
        if is_output:
            self._become_output(value, dequantize.outputs[0])

    def _without_clip(self, clip: ir.Node) -> ir.Value:
        """Take the clip out; the tensor before it gets its place and its name."""
        before, after = clip.inputs[0], clip.outputs[0]
        assert before is not None
        outputs, name = self.graph.graph.outputs, str(after.name)
        for index, value in enumerate(outputs):
            if value is after:
                outputs[index] = before
        after.replace_all_uses_with(before)
        # `before` had the clip as its only reader; what reads it now is what read `after`, re-wired by the caller.
        self.graph.graph.remove(clip, safe=True)
        after.name = self.namer(f"{name}_clipped")
        before.name = name
        return before

    def _become_output(self, value: ir.Value, dequantized: ir.Value) -> None:
        outputs, name = self.graph.graph.outputs, str(value.name)
        for index, item in enumerate(outputs):
            if item is value:
                outputs[index] = dequantized
        value.name = self.namer(f"{name}_float")
        dequantized.name = name

    def _parameters(self, group: str) -> tuple[ir.Value, ir.Value]:
        if group not in self.parameters:
            self.parameters[group] = self._grid(group, self.grids[group])
        return self.parameters[group]

    def _grid(self, name: str, grid: Grid) -> tuple[ir.Value, ir.Value]:
        scale = self.namer.initializer(self.graph, f"{name}_scale", np.array(grid.scale, np.float32))
        zero = self.namer.initializer(self.graph, f"{name}_zero", np.array(grid.zero_point, grid.dtype))
        return scale, zero

    def constants(self) -> None:
        """Constants in the place of activations (an embedding of positions) get their own grid."""
        done: dict[ir.Value, ir.Value] = {}
        for node, index in self.plan.constants:
            value = node.inputs[index]
            array = constant_array(value)
            if value is None or array is None:
                continue
            if value not in done:
                grid = self.options.target.grid(float(array.min()), float(array.max()))
                scale, zero = self._grid(str(value.name), grid)
                done[value] = self._constant_pair(value, scale, zero, axis=None)
            node.replace_input_with(index, done[value])

    def weights(self) -> None:
        done: dict[tuple[ir.Value, int | None, int], ir.Value] = {}
        nodes = [site.node for site in self.plan.sites if site.weighted] + list(self.plan.stored)
        for node in nodes:
            value, array = node.inputs[1], constant_array(node.inputs[1])
            assert value is not None and array is not None  # the plan took only such nodes
            axis = weight_axis(node) if self.options.per_channel else None
            limit = weight_limit(self.options.bits_of(node))
            key = (value, axis, limit)
            if key not in done:
                scales = self.options.scales(node, array, axis)
                scale = self.namer.initializer(self.graph, f"{value.name}_scale", scales)
                zero = self.namer.initializer(self.graph, f"{value.name}_zero", np.zeros(scales.shape, np.int8))
                done[key] = self._constant_pair(value, scale, zero, axis=axis, limit=limit)
            node.replace_input_with(1, done[key])

    def _constant_pair(
        self, value: ir.Value, scale: ir.Value, zero: ir.Value, *, axis: int | None, limit: int | None = None
    ) -> ir.Value:
        attributes = {} if axis is None else {"axis": axis}
        quantize = ir.node("QuantizeLinear", [value, scale, zero], attributes, name=self.namer(f"{value.name}/Q"))
        if limit is not None:
            quantize.metadata_props[LIMIT] = str(limit)
        codes = quantize.outputs[0]
        dequantize = ir.node("DequantizeLinear", [codes, scale, zero], attributes, name=self.namer(f"{value.name}/DQ"))
        self._describe(codes, f"{value.name}_codes", zero.dtype, value.shape)
        self._describe(dequantize.outputs[0], f"{value.name}_dq", ir.DataType.FLOAT, value.shape)
        self.graph.graph.insert_before(self.first, [quantize, dequantize])
        return dequantize.outputs[0]

    def _describe(self, value: ir.Value, name: str, dtype: ir.DataType | None, shape: ir.Shape | None) -> None:
        value.name = self.namer(name)
        value.dtype = dtype if dtype is not None else ir.DataType.FLOAT
        value.shape = shape


def _redundant(clip: ir.Node, grid: Grid) -> bool:
    """Whether saturation at the ends of the grid clips at least as much."""
    bounds = clip_bounds(clip)
    slack = grid.scale * 1e-3  # the rounding of the scale to float32
    return bounds is not None and grid.low >= bounds[0] - slack and grid.high <= bounds[1] + slack
