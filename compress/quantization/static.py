"""Static quantization: from float graph, by calibration, to the int8 graph that ships."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

import onnx_ir as ir
from torch import nn

from compress.errors import QuantizationError
from compress.given import batches_of
from compress.graph.constants import weights_as_constants
from compress.graph.editing import name_everything
from compress.graph.exporting import to_graph
from compress.graph.folding import fold_constants, infer_shapes
from compress.graph.naming import matching_nodes, nodes_by_name
from compress.graph.opset import ensure_opset, fixed_inputs, opset_of
from compress.options import spelled_out
from compress.quantization.calibrated import Calibrated, observe
from compress.quantization.calibration import two_samples
from compress.quantization.finishing import finish
from compress.quantization.insertion import WeightOptions
from compress.quantization.options import StaticFields, StaticOptions
from compress.quantization.profiles import PROFILES
from compress.quantization.range_table import resolve_ranges
from compress.quantization.repairs.bench import Bench
from compress.quantization.repairs.judge import Judge, take_samples
from compress.quantization.repairs.levels import resolve_accuracy
from compress.quantization.repairs.passes import repair
from compress.quantization.rewrites import apply_rewrites
from compress.quantization.rewrites.matching import keep_float, stays_float
from compress.quantization.targets import resolve_target
from compress.quantization.weights import fold_weights as _fold
from compress.steps import Change, Step
from compress.taking import takes

__all__ = ["calibrate_static", "fold_weights", "quantize_static"]
PAIRS_OPSET = 13  # QuantizeLinear with an axis
WANTED_OPSET = 17  # LayerNormalization, where old files have to be raised anyway


@takes()
def quantize_static(
    model: nn.Module | ir.Model | str | Path,
    calibration: Iterable[Any],
    options: StaticOptions | None = None,
    *,
    example_inputs: Any = None,
    threads: int | None = None,
    **fields: Unpack[StaticFields],
) -> Step:
    """Quantize weights and activations to int8, with ranges calibrated on real samples.

    Args:
        model: a module (exported first), a graph, or the path of an `.onnx` file. Not touched.
        calibration: batches of any size (a DataLoader, a list of tensors; a generator is held in memory).
        options: how; `fields` are those of `StaticOptions` spelled out: `quantize_static(model, data, ranges="mse")`.
        example_inputs: a batch of 2 for the export of a module; default: from `calibration`.

    Returns:
        A Step whose model is an `onnx_ir.Model`, with a change for each node that runs in int8
        and one, `skipped`, with the reason, for each that stays float.

    Raises:
        QuantizationError: unknown target, range method, op type or bits; nothing to quantize.
        InputError: an option that does not exist; a name in `exclude` or `layer_bits` that matches nothing.
        DataError: calibration data that is empty or not finite.
    """
    options = spelled_out(StaticOptions, options, fields, "quantize_static")
    calibrated, rewritten = calibrate_static(
        model, calibration, options, example_inputs=example_inputs, threads=threads
    )
    step = calibrated.quantize(fold=options.fold_weights)
    return replace(step, changes=(*rewritten, *step.changes))


def calibrate_static(
    model: nn.Module | ir.Model | str | Path,
    calibration: Iterable[Any],
    options: StaticOptions | None = None,
    *,
    example_inputs: Any = None,
    threads: int | None = None,
    **fields: Unpack[StaticFields],
) -> tuple[Calibrated, tuple[Change, ...]]:
    """The first half of `quantize_static`: what its second half may be repeated on, and what was rewritten.

    Raises: as `quantize_static`.
    """
    options = spelled_out(StaticOptions, options, fields, "calibrate_static")
    calibration = batches_of(calibration)
    graph = _own_graph(model, calibration, example_inputs)
    notes = ready_for_pairs(graph, calibration, threads=threads)
    name = resolve_target(options.target).profile or options.runtime
    profile = PROFILES[name]
    rewrites = profile.rewrites if options.rewrites is None else options.rewrites
    graph, rewritten = prepare(graph, calibration, rewrites=rewrites, exclude=tuple(options.exclude))
    excluded = [node for node in graph.graph if stays_float(node)]
    plan = profile.plan(graph, op_types=options.op_types, exclude=excluded)
    if not plan.sites and not plan.stored:
        raise QuantizationError(f"nothing in this graph can run in int8: {_what_there_is(graph)}")
    names = tuple(str(node.name) for node in excluded)

    def observed(graph: ir.Model) -> Calibrated:
        kept = [node for node in graph.graph if stays_float(node)]
        found = observe(
            graph,
            profile.plan(graph, op_types=options.op_types, exclude=kept),
            calibration,
            resolve_ranges(options.ranges),
            _weight_options(graph, options),
            op_types=None if options.op_types is None else tuple(options.op_types),
            correct_bias=options.correct_bias and options.fold_weights,
            threads=threads,
        )
        return replace(found, excluded=names, notes=notes, profile=name)

    calibrated, accuracy = observed(graph), resolve_accuracy(options.accuracy)
    if accuracy.passes == () or not options.fold_weights:
        return calibrated, rewritten
    samples = take_samples(calibration, accuracy.samples)
    bench = Bench(samples, Judge(graph, samples, threads=threads), observed, accuracy, threads)
    calibrated, repaired = repair(calibrated, bench)
    return calibrated, (*rewritten, *repaired)


def _weight_options(graph: ir.Model, options: StaticOptions) -> WeightOptions:
    """The widths of weights by node: a pattern of `layer_bits` that stands later overrules."""
    bits = {
        str(node.name): wanted
        for pattern, wanted in options.layer_bits.items()
        for node in matching_nodes(graph, [pattern])
    }
    return WeightOptions(
        resolve_target(options.target), options.per_channel, options.weight_bits, bits, not options.fold_weights
    )


def fold_weights(graph: ir.Model) -> ir.Model:
    """Return the form that ships of a graph made with `fold_weights=False`: int8 weights, int32 biases."""
    return finish(_fold(graph))


def prepare(
    model: nn.Module | ir.Model | str | Path,
    calibration: Iterable[Any],
    *,
    example_inputs: Any = None,
    rewrites: Iterable[str] | None = None,
    exclude: Collection[str] = (),
) -> tuple[ir.Model, tuple[Change, ...]]:
    """A float graph of the caller's own, rewritten for int8 kernels, every node and tensor named and typed.

    The nodes that `exclude` means, as the model has them or as a rewrite leaves them, are marked to stay in float.
    """
    graph = fold_constants(_own_graph(model, calibration, example_inputs))
    infer_shapes(graph)
    name_everything(graph)
    before = nodes_by_name(graph, exclude)
    keep_float(set().union(*before.values()))
    changes = apply_rewrites(graph, None if rewrites is None else tuple(rewrites))
    name_everything(graph)
    after = nodes_by_name(graph, exclude)
    keep_float(set().union(*after.values()))
    matching_nodes(graph, [name for name in exclude if not before[name]])  # raises where a name means nothing in either
    return graph, changes


def ready_for_pairs(graph: ir.Model, calibration: Iterable[Any], *, threads: int | None = None) -> tuple[str, ...]:
    """Raise, in place, an opset that is too old for the pairs that will be inserted; sentences that tell of it.

    Raises:
        UnsupportedOperatorError: it cannot be raised.
    """
    constants = weights_as_constants(graph)
    if opset_of(graph) >= PAIRS_OPSET:
        return constants
    return (
        *constants,
        *ensure_opset(
            graph,
            PAIRS_OPSET,
            wanted=WANTED_OPSET,
            purpose="a quantize/dequantize pair with one scale per channel",
            inputs=fixed_inputs(graph, two_samples(calibration)),
            threads=threads,
        ),
    )


def _own_graph(model: nn.Module | ir.Model | str | Path, calibration: Iterable[Any], example_inputs: Any) -> ir.Model:
    if isinstance(model, nn.Module) and example_inputs is None:
        example_inputs = two_samples(calibration)
    return to_graph(model, example_inputs)


def _what_there_is(graph: ir.Model) -> str:
    types = sorted({node.op_type for node in graph.graph})
    if {"QuantizeLinear", "DynamicQuantizeLinear", "DynamicQuantizeLSTM"} & set(types):
        return "it is quantized already; give the float model"
    inside = [kind for kind in ("If", "Loop", "Scan") if kind in types]
    if inside:
        return (
            f"its layers lie inside {' and '.join(inside)}, where no ranges can be observed; dynamic quantization "
            "(--method dynamic) compresses them"
        )
    return f"it has {', '.join(types[:8])}{', …' if len(types) > 8 else ''}, and what is excluded"
