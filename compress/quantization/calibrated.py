"""A float graph with its ranges: calibrated once, quantized as often as needed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from compress.counting import counted
from compress.graph.constants import constant_array
from compress.graph.editing import Namer
from compress.quantization.arithmetic import Grid, symmetric_grid
from compress.quantization.bias_correction import ChannelMeans, channel_axes, correct_biases, input_names, shift_biases
from compress.quantization.calibration import calibrate
from compress.quantization.finishing import finish, without_zero_points
from compress.quantization.insertion import WeightOptions, insert
from compress.quantization.kernels import HEAVY
from compress.quantization.placement import Plan
from compress.quantization.profiles import PROFILES
from compress.quantization.ranges.observer import Observer, RangeMethod
from compress.quantization.rescaling import carried_factors, carried_grid
from compress.quantization.rewrites.matching import stays_float
from compress.quantization.sharing import keep, take, wanted_later
from compress.quantization.storage import tables_of
from compress.quantization.targets import Target
from compress.quantization.weights import TARGET, fold_weights
from compress.steps import Change, Step


@dataclass(frozen=True)
class Width:
    """What four bits for the weights of one layer cost at the outputs, and what eight would take more."""

    node: str
    noise: float  # power, as a share of the signal's
    bytes: int


@dataclass(frozen=True)
class Calibrated:
    """What `observe` learnt. Any part of what was planned then may be quantized without looking at data again."""

    graph: ir.Model  # float; not to be changed
    ranges: Mapping[str, tuple[float, float]]  # of every tensor that may be quantized
    means: ChannelMeans
    weights: WeightOptions
    op_types: tuple[str, ...] | None  # those to quantize; None for the default
    layers: tuple[str, ...]  # nodes with weights or products that the plan quantizes, in order of the graph
    excluded: tuple[str, ...] = ()  # nodes that stay float whatever is asked
    repaired: tuple[str, ...] = ()  # those of `excluded` that nobody named: a repair left them in float
    notes: tuple[str, ...] = ()  # what was done to the graph before, in sentences
    rounded: Mapping[str, np.ndarray] = field(default_factory=dict)  # node → its weight on the grid of `weights.fixed`
    shifts: Mapping[str, np.ndarray] = field(default_factory=dict)  # node → what is added to its bias where all is int8
    widths: tuple[Width, ...] = ()  # layers of four bits, those first that gain most for each byte of eight
    profile: str = "onnxruntime"  # whose placement it is

    def planned(self, graph: ir.Model, exclude: Collection[ir.Node] = frozenset()) -> Plan:
        """Where `graph`, this one or a clone of it, is quantized for the runtime that it is made for."""
        return PROFILES[self.profile].plan(graph, op_types=self.op_types, exclude=exclude)

    def quantize(
        self,
        *,
        exclude: Collection[str] = (),
        only: Collection[str] | None = None,
        fold: bool = True,
        tables: bool = True,
    ) -> Step:
        """Quantize all that was planned but the nodes `exclude`, or of its layers those of `only` alone (node names).

        With `tables`, those that are read by rows are stored in int8 too, unless one layer is looked at alone.
        """
        graph, out = self.graph.clone(), {*exclude, *self.excluded}
        if only is not None:
            out |= set(self.layers) - set(only)
        nodes = {node for node in graph.graph if node.name in out}
        before = self._take_rounded(graph, nodes)
        plan = self.planned(graph, nodes)
        inputs = input_names(plan)
        carried = {str(node.name) for node in carried_factors(plan)}  # now: what is carried leaves the graph
        insert(graph, plan, grids_of(plan, self.ranges, self.weights.target, self.profile), self.weights)
        graph.metadata_props[TARGET] = self.weights.target.name
        correct_biases(graph, plan, inputs, self.means, before)
        if only is None:
            shift_biases(graph, plan, self.shifts)
        stored = self._tables(graph, out) if tables and only is None and fold else {}
        if fold:
            graph = finish(fold_weights(graph), tables=stored)
            if not PROFILES[self.profile].weight_zeros:
                without_zero_points(graph)
        listed = tuple(_changes(plan, self, carried, stored))
        return Step("quantize static", graph, listed, (*self.notes, *_notes(plan, self.weights)))

    def _take_rounded(self, graph: ir.Model, out: Collection[ir.Node]) -> dict[str, np.ndarray]:
        """Put the rounded weights in, in place; return what stood there, by node name."""
        namer, before = Namer(graph) if self.rounded else None, {}
        for node in graph.graph:
            if namer is not None and node.name in self.rounded and node not in out:
                weight = constant_array(node.inputs[1])
                assert weight is not None and node.inputs[1] is not None
                before[str(node.name)] = weight
                value = namer.initializer(graph, str(node.inputs[1].name), self.rounded[str(node.name)])
                node.replace_input_with(1, value)
        return before

    def _tables(self, graph: ir.Model, out: Collection[str]) -> dict[str, int]:
        """The bits of each table, by the node that reads it."""
        if not PROFILES[self.profile].tables:
            return {}
        return {str(node.name): self.weights.bits_of(node) for node in tables_of(graph) if node.name not in out}


def observe(
    graph: ir.Model,
    plan: Plan,
    calibration: Iterable[Any],
    method: RangeMethod,
    weights: WeightOptions,
    *,
    op_types: tuple[str, ...] | None = None,
    correct_bias: bool = True,
    threads: int | None = None,
) -> Calibrated:
    """Calibrate the tensors of `plan`, made for `graph`, in one pass over the data."""
    names = list(dict.fromkeys(plan.observed_tensors))
    axes = channel_axes(plan) if correct_bias else {}
    for later in wanted_later(calibration, method):  # in the same pass what the other runtimes' forms will ask for
        kept = [node for node in graph.graph if stays_float(node)]
        other = PROFILES[later].plan(graph, op_types=op_types, exclude=kept)
        names = list(dict.fromkeys([*names, *other.observed_tensors]))
        axes = (channel_axes(other) if correct_bias else {}) | axes
    observers, means = take(graph, names, axes, calibration, method)
    rest, unseen = [name for name in names if name not in observers], [n for n in means.axes if n not in means.sums]
    if rest or unseen or not names:
        show = (tuple(unseen), means.observe)
        observers |= calibrate(graph, rest, calibration, method.start, also=show, threads=threads)
    keep(graph, calibration, method, observers, means)
    layers = tuple(str(site.node.name) for site in plan.sites if site.node.op_type in HEAVY)
    return Calibrated(graph, ranges_of(plan, observers), means, weights, op_types, layers)


def ranges_of(plan: Plan, observers: Mapping[str, Observer]) -> dict[str, tuple[float, float]]:
    """The range of every tensor of the plan: the union over its group of what was seen."""
    groups: dict[str, tuple[float, float]] = {}
    for group, names in plan.observed.items():
        first, *others = (observers[name] for name in names)
        for other in others:
            first.merge(other)
        groups[group] = first.range()
    return {name: groups[group] for name, group in plan.tensors.items()}


def grids_of(
    plan: Plan, ranges: Mapping[str, tuple[float, float]], target: Target, profile: str = "onnxruntime"
) -> dict[str, Grid]:
    """One grid for each group of the plan, from ranges of tensors."""
    spans: dict[str, tuple[float, float]] = {}
    for name, group in plan.tensors.items():
        low, high = spans.get(group, ranges[name])
        spans[group] = min(low, ranges[name][0]), max(high, ranges[name][1])
    lopsided = PROFILES[profile].lopsided if target.signed_kernels else 0.0

    def chosen(low: float, high: float) -> Grid:
        signed = 0 < max(-low, high) <= lopsided * min(-low, high)
        return symmetric_grid(low, high) if signed else target.grid(low, high)

    grids = {group: chosen(*found) for group, found in spans.items()}
    factors = carried_factors(plan)
    for site in plan.sites:
        if site.node in factors:
            carried = carried_grid(site.node, factors[site.node], plan, grids)
            if carried is not None:
                grids[plan.tensors[str(site.output.name)]] = carried
        if site.node.op_type == "GlobalAveragePool" and str(site.output.name) in plan.tensors:
            source, result = (
                plan.tensors[str(getattr(value, "name", ""))] for value in (site.node.inputs[0], site.output)
            )
            # The kernel refuses s_x / (s_y · H · W) ≥ 256. A mean is never known better than this anyway.
            if grids[result].scale < grids[source].scale / 128:
                low, high = spans[result]
                widest = grids[source].scale / 128 * 255
                grids[result] = target.grid(low, max(high, low + widest))
    return grids


def _changes(plan: Plan, made: Calibrated, carried: Collection[str], tables: Mapping[str, int]) -> Iterator[Change]:
    weights = made.weights
    nodes = {str(site.node.name): site.node for site in plan.sites if site.weighted}
    for change in plan.changes:
        name = str(change.values.get("node"))
        if name in carried:
            yield replace(change, action="carried by a scale")
            continue
        if name in made.repaired:
            yield replace(change, reason="its error in int8 is among the largest")
            continue
        node = nodes.get(name)
        if node is None or change.skipped:
            yield change
        else:
            values = {"weight_bits": weights.bits_of(node), "pairs_kept_in_16_bits": weights.in_pairs(node)}
            yield replace(change, values={**change.values, **values})
    for name, bits in tables.items():
        stored: dict[str, Any] = {"node": name, "op_type": "Gather", "weight_bits": bits}
        yield Change(name.rsplit("/", 1)[0], f"table stored in {bits} bits, one scale per row", values=stored)


def _notes(plan: Plan, weights: WeightOptions) -> tuple[str, ...]:
    notes = [f"target {weights.target.name}: {weights.target.description}"]
    paired = sum(site.weighted and weights.in_pairs(site.node) for site in plan.sites)
    if paired:
        notes.append(
            f"the weights of {counted(paired, 'layer')} are scaled so that no sum of two u8·s8 products leaves 16 bits"
        )
    if plan.stored:
        count = counted(len(plan.stored), "transposed convolution")
        notes.append(
            f"the weights of {count} are stored in int8 and computed in float: no runtime here has an int8 kernel"
        )
    floats = [change for change in plan.changes if change.skipped]
    if floats:
        kinds = sorted({str(change.values["op_type"]) for change in floats})
        stay = counted(len(floats), "node stays", "nodes stay")
        notes.append(f"{stay} in float: {', '.join(kinds)}")
    return tuple(notes)
