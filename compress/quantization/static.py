"""Static quantization: from float graph and calibration data to the int8 graph that ships."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
from torch import Tensor, nn

from compress.batches import split_batch
from compress.errors import DataError, QuantizationError
from compress.graph.exporting import to_graph
from compress.graph.folding import fold_constants, infer_shapes
from compress.graph.naming import matching_nodes
from compress.quantization.arithmetic import Grid, grid_for_range
from compress.quantization.bias_correction import ChannelMeans, channel_axes, correct_biases, input_names
from compress.quantization.calibration import calibrate
from compress.quantization.finishing import finish
from compress.quantization.insertion import WeightOptions, insert
from compress.quantization.naming import name_everything
from compress.quantization.observers import Observer, RangeMethod, resolve_ranges
from compress.quantization.placement import Plan, plan_placement
from compress.quantization.rewrites import REWRITES, apply_rewrites
from compress.quantization.targets import Target, resolve_target, weight_limit
from compress.quantization.weights import TARGET
from compress.quantization.weights import fold_weights as _fold
from compress.steps import Change, Step

__all__ = ["fold_weights", "quantize_static"]


def quantize_static(
    model: nn.Module | ir.Model | str | Path,
    calibration: Iterable[Any],
    *,
    target: str | Target = "auto",
    ranges: str | RangeMethod = "minmax",
    per_channel: bool = True,
    weight_bits: int = 8,
    layer_bits: Mapping[str, int] | None = None,
    op_types: Iterable[str] | None = None,
    exclude: Iterable[str] = (),
    example_inputs: Sequence[Tensor] | None = None,
    rewrites: Iterable[str] | None = None,
    correct_bias: bool = True,
    fold_weights: bool = True,
    threads: int | None = None,
) -> Step:
    """Quantize weights and activations to int8, with ranges calibrated on real samples.

    Args:
        model: a module (exported first), a graph, or the path of an `.onnx` file. Not touched.
        calibration: a re-iterable of batches of any size (a DataLoader, a list of tensors).
        target: what it shall run on: `auto` (this machine), `any`, `x86-vnni`, `x86-avx2`, `arm64`.
        ranges: `minmax`, `percentile`, `entropy`, `mse`, or options such as `Percentile(99.9)`.
        weight_bits: 4 to 8; fewer than 8 are simulated inside int8.
        layer_bits: other weight bits for single nodes, by node name.
        op_types: quantize only these operator types.
        exclude: nodes, modules, weights or patterns that stay float.
        example_inputs: a batch of 2 for the export of a module; default: from `calibration`.
        rewrites: names of the exact rewrites to apply first (`rewrites.REWRITES`); None for all of them.
        correct_bias: take the mean error of rounded weights off the biases (not where weights stay float).
        fold_weights: False leaves weights float behind quantize/dequantize pairs, for training;
            `static.fold_weights` folds them later.

    Returns:
        A Step whose model is an `onnx_ir.Model`, with a change for each node that runs in int8
        and one, `skipped`, with the reason, for each that stays float.

    Raises:
        QuantizationError: unknown target, range method, op type or bits; nothing to quantize.
        InputError: a name in `exclude` that matches nothing.
        DataError: calibration data that is empty or not finite.
    """
    resolved, method = resolve_target(target), resolve_ranges(ranges)
    weight_limit(weight_bits)
    graph, rewritten = prepare(model, calibration, example_inputs=example_inputs, rewrites=rewrites)
    excluded = matching_nodes(graph, exclude) if exclude else set()
    plan = plan_placement(graph, op_types=op_types, exclude=excluded)
    if not plan.sites and not plan.stored:
        raise QuantizationError("nothing in this graph can run in int8; see the float operators with --verbose")
    weights = WeightOptions(resolved, per_channel, weight_bits, dict(layer_bits or {}), exact_pairs=not fold_weights)
    correct_bias = correct_bias and fold_weights
    means, inputs = ChannelMeans(channel_axes(plan) if correct_bias else {}), input_names(plan)
    observers = calibrate(
        graph,
        plan.observed_tensors,
        calibration,
        method.start,
        also=(tuple(means.axes), means.observe),
        threads=threads,
    )
    insert(graph, plan, grids_of(plan, observers, resolved), weights)
    graph.metadata_props[TARGET] = resolved.name
    if correct_bias:
        correct_biases(graph, plan, inputs, means)
    if fold_weights:
        graph = finish(_fold(graph))
    changes = (*rewritten, *_with_bits(plan, weights))
    return Step("quantize static", graph, changes, _notes(plan, weights))


def fold_weights(graph: ir.Model) -> ir.Model:
    """Return the form that ships of a graph made with `fold_weights=False`: int8 weights, int32 biases."""
    return finish(_fold(graph))


def prepare(
    model: nn.Module | ir.Model | str | Path,
    calibration: Iterable[Any],
    *,
    example_inputs: Sequence[Tensor] | None = None,
    rewrites: Iterable[str] | None = None,
) -> tuple[ir.Model, tuple[Change, ...]]:
    """A float graph of the caller's own, rewritten for int8 kernels, every node and tensor named and typed."""
    if isinstance(model, nn.Module) and example_inputs is None:
        example_inputs = _example(calibration)
    graph = fold_constants(to_graph(model, example_inputs))
    infer_shapes(graph)
    name_everything(graph)
    changes = apply_rewrites(graph, tuple(REWRITES) if rewrites is None else tuple(rewrites))
    name_everything(graph)
    return graph, changes


def grids_of(plan: Plan, observers: Mapping[str, Observer], target: Target) -> dict[str, Grid]:
    """One grid for each group of the plan, over the union of what its tensors were seen to hold."""
    ranges: dict[str, tuple[float, float]] = {}
    for group, names in plan.observed.items():
        first, *others = (observers[name] for name in names)
        for other in others:
            first.merge(other)
        ranges[group] = first.range()
    grids = {group: grid_for_range(*found, signed=target.activation_signed) for group, found in ranges.items()}
    for site in plan.sites:
        if site.node.op_type == "GlobalAveragePool" and str(site.output.name) in plan.tensors:
            source, result = (
                plan.tensors[str(getattr(value, "name", ""))] for value in (site.node.inputs[0], site.output)
            )
            # The kernel refuses s_x / (s_y · H · W) ≥ 256. A mean is never known better than this anyway.
            if grids[result].scale < grids[source].scale / 128:
                low, high = ranges[result]
                widest = grids[source].scale / 128 * 255
                grids[result] = grid_for_range(low, max(high, low + widest), signed=target.activation_signed)
    return grids


def _example(calibration: Iterable[Any]) -> tuple[Tensor, ...]:
    for batch in calibration:
        inputs, _ = split_batch(batch)
        return tuple(value[:2] for value in inputs)
    raise DataError("the calibration data is empty; give at least one batch")


def _with_bits(plan: Plan, weights: WeightOptions) -> Iterator[Change]:
    nodes = {str(site.node.name): site.node for site in plan.sites if site.weighted}
    for change in plan.changes:
        node = nodes.get(str(change.values.get("node")))
        if node is None or change.skipped:
            yield change
        else:
            values = {"weight_bits": weights.bits_of(node), "pairs_kept_in_16_bits": weights.in_pairs(node)}
            yield replace(change, values={**change.values, **values})


def _notes(plan: Plan, weights: WeightOptions) -> tuple[str, ...]:
    notes = [f"target {weights.target.name}: {weights.target.description}"]
    paired = sum(site.weighted and weights.in_pairs(site.node) for site in plan.sites)
    if paired:
        notes.append(f"the weights of {paired} layers are scaled so that no sum of two u8·s8 products leaves 16 bits")
    floats = [change for change in plan.changes if change.skipped]
    if floats:
        kinds = sorted({str(change.values["op_type"]) for change in floats})
        notes.append(f"{len(floats)} nodes stay in float: {', '.join(kinds)}")
    return tuple(notes)
