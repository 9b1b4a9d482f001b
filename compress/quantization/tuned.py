"""Static quantization whose placement is decided by the clock of this machine."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

import onnx_ir as ir
import torch
from torch import nn

from compress.batches import Batch, example_batch, read_batch
from compress.errors import DataError
from compress.given import batches_of
from compress.graph.exporting import to_graph
from compress.options import spelled_out
from compress.quantization.options import StaticFields, StaticOptions
from compress.quantization.placement import check_op_types
from compress.quantization.rewrites import REWRITES
from compress.quantization.static import prepare, quantize_static, ready_for_pairs
from compress.quantization.tuning import Choices, tune_latency
from compress.steps import Change, Step
from compress.taking import takes


@takes()
def quantize_tuned(
    model: nn.Module | ir.Model | str | Path,
    calibration: Iterable[Any],
    *,
    inputs: Any = None,
    threads: int | None = None,
    budget_s: float = 60.0,
    only_under_s: float | None = None,
    example_inputs: Any = None,
    options: StaticOptions | None = None,
    **fields: Unpack[StaticFields],
) -> Step:
    """`quantize_static`, after timing int8 and float forms of the parts that may lose inside the whole model.

    Args:
        inputs: what to time on; default: one sample of the calibration data, the batch of a latency-bound service.
        threads: threads to time with, as the file will be run with.
        budget_s: seconds that the tuning may take, calibration of the final file not counted.
        only_under_s: leave the plain int8 graph where tuning would take longer than this; a note then says how long.
        options, fields: as for `quantize_static`; what the tuning starts from, it may leave more in float.

    Returns:
        Its Step, with one more change for each decision, its milliseconds in `values`, and a note that says whether
        int8 is faster than float here.
    """
    options = spelled_out(StaticOptions, options, fields, "quantize_tuned")
    calibration = batches_of(calibration)
    first = _sample(calibration)
    graph = to_graph(model, example_inputs if example_inputs is not None else _twice(first))
    notes = ready_for_pairs(graph, [first], threads=threads)
    sample = example_batch(inputs) if inputs is not None else _filled(first, graph)
    start = Choices(
        exclude=tuple(options.exclude),
        rewrites=tuple(REWRITES) if options.rewrites is None else tuple(options.rewrites),
        op_types=check_op_types(options.op_types),
    )

    rewritten: dict[tuple[tuple[str, ...], ...], tuple[ir.Model, tuple[Change, ...]]] = {}

    def build(choices: Choices) -> tuple[ir.Model, tuple[Change, ...]]:
        key = (choices.rewrites, choices.exclude)
        if key not in rewritten:
            rewritten[key] = prepare(graph, [sample], rewrites=choices.rewrites, exclude=choices.exclude)
        prepared, changes = rewritten[key]
        # Candidates differ in speed only, which ranges and repairs have no part in. What is excluded is marked already.
        wanted = replace(
            options, op_types=tuple(choices.op_types), rewrites=(), exclude=(), ranges="minmax", accuracy="fast"
        )
        step = quantize_static(prepared, [sample], wanted, threads=threads)
        return step.model, (*changes, *step.changes)

    tuned = tune_latency(
        graph, build, sample, threads=threads, budget_s=budget_s, only_under_s=only_under_s, start=start
    )
    step = quantize_static(graph, calibration, replace(options, **tuned.choices.options()), threads=threads)
    chosen = set(tuned.choices.exclude) - set(start.exclude)
    changes = [
        replace(change, reason="faster in float on this machine") if change.values.get("node") in chosen else change
        for change in step.changes
    ]
    return replace(step, changes=(*tuned.changes, *changes), notes=(*notes, *step.notes, *tuned.notes))


def _sample(calibration: Iterable[Any]) -> Batch:
    for batch in calibration:
        return replace(read_batch(batch).part(0, 1), target=None)
    raise DataError("the calibration data is empty; give at least one batch")


def _filled(sample: Batch, graph: ir.Model) -> Batch:
    """One sample, or as many copies of it as a graph with a fixed batch takes."""
    shape = graph.graph.inputs[0].shape
    rows = shape[0] if shape is not None and len(shape) and isinstance(shape[0], int) else 1
    return sample.map(lambda value: value.repeat(rows, *[1] * (value.dim() - 1)) if value.dim() else value)


def _twice(sample: Batch) -> Batch:
    return sample.map(lambda value: torch.cat([value, value]) if value.dim() and len(value) == 1 else value)
