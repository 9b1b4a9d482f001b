"""What limits choose on the calibration part: bits of weights, and the fewest layers that stay in float."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import onnx_ir as ir

from compress.batches import read_batch, resized_batch
from compress.counting import counted
from compress.evaluation.accuracy import evaluate_all
from compress.evaluation.latency import benchmark
from compress.graph.constants import stored_bytes
from compress.measures import deciding
from compress.measures.opening import Measures
from compress.pipeline.job import Job
from compress.quantization.budget import Bounds, Budget, quantize_within
from compress.quantization.options import StaticOptions
from compress.quantization.repairs.levels import resolve_accuracy
from compress.quantization.repairs.passes import ENOUGH_DB
from compress.quantization.static import quantize_static
from compress.quantization.storage import NARROW
from compress.reporting.words import samples_of
from compress.steps import Measure, Measurement, Step

SECONDS = 10.0  # of timing one candidate
FEWEST = 100  # labelled samples; with fewer, a single answer is worth more than a point


def quantize_to_budget(graph: ir.Model, job: Job, options: StaticOptions) -> Step:
    """`quantize_static`, with as few layers in float as keep the calibration part within the job's `max_drop`.

    What decides there is what decides everywhere (`measures/deciding.py`). The test part is never looked at, so that the
    gate judges the file on samples that had no part in choosing it. Where the calibration part cannot choose (no labels,
    too few samples), the plain int8 graph is returned with a note.
    """
    opened, limit = job.opened, job.limits.drop
    assert limit is not None
    calibration, threads = opened.calibration(), opened.threads
    beside = _needs_float(job.measures)

    def measure(target: ir.Model) -> Measurement:
        """Beside the float graph only where the figure is a comparison with it: that doubles the work."""
        targets = {"float": graph, "int8": target} if beside else {"int8": target}
        rows = evaluate_all(
            targets,
            calibration,
            baseline="float" if beside else None,
            measures=job.measures,
            intervals=False,
            threads=threads,
        )
        return rows["int8"]

    before = measure(graph) if beside or _has_targets(calibration) else None
    decides = None if before is None else deciding.deciding(before)
    reason = _undecidable(before, decides)
    if before is None or decides is None or reason:
        return only_checked(quantize_static(graph, calibration, options, threads=threads), reason)
    bounds = Bounds(job.limits.max_size, job.limits.require_speedup, lambda candidate: _speedup(graph, candidate, job))
    budget = Budget(
        lambda candidate: deciding.score(measure(candidate)),
        limit.allowed(decides),
        baseline=deciding.score(before),
        measure=decides,
        scored_on=f"{samples_of(before).replace(' ', ' calibration ', 1)} (the test part had no say)",
        bounds=bounds,
    )
    return quantize_within(graph, calibration, budget, options, threads=threads).step


def _speedup(graph: ir.Model, candidate: ir.Model, job: Job) -> float:
    """How much faster the candidate is than the float graph here, one sample, both in turns."""
    one = job.opened.inputs if job.opened.declared else resized_batch(job.opened.inputs, 1)
    targets = {"float": graph, "int8": candidate}
    rows = benchmark(targets, one, baseline="float", threads=job.settings.threads, rounds=30, max_seconds=SECONDS)
    return rows["int8"].speedup or 0.0


def sized(options: StaticOptions, graph: ir.Model, max_bytes: int | None) -> StaticOptions:
    """The options with which a file comes out that is no larger than it may be: four bits where eight cannot do.

    Where eight bits would do, or four were asked for, as they are but for the room that wider layers may take.
    """
    if max_bytes is None or options.weight_bits not in (NARROW, 8):
        return options
    bits = NARROW if stored_bytes(graph) / 4 > max_bytes else options.weight_bits
    if bits == 8:
        return options
    level = resolve_accuracy(options.accuracy)
    passes = level.passes if level.runs("widths") else (*(level.passes or ()), "widths")
    filled = replace(level, passes=passes, max_bytes=max_bytes, mixed_db=ENOUGH_DB)
    return replace(options, weight_bits=bits, accuracy=filled)


def _needs_float(measures: Measures) -> bool:
    """Whether what decides compares outputs with the float model's."""
    return not measures.metrics and measures.reading is not None and measures.reading.task.name == "embedding"


def only_checked(step: Step, reason: str) -> Step:
    """Add the note that no layer was chosen for the budget, and why."""
    return replace(step, notes=(*step.notes, f"--max-drop could only be checked, no layer was chosen for it: {reason}"))


def _has_targets(batches: Iterable[Any]) -> bool:
    first = next(iter(batches), None)
    return first is not None and read_batch(first).target is not None


def _undecidable(before: Measurement | None, decides: Measure | None) -> str:
    if before is None or decides is None:
        return "the calibration part has no labels"
    if (before.samples or 0) < FEWEST:
        return f"the calibration part has {counted(before.samples or 0, 'sample')}, and choosing takes {FEWEST}"
    return ""
