"""What `--max-drop` chooses on the calibration part: the fewest layers that stay in float."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import onnx_ir as ir

from compress.batches import read_batch
from compress.evaluation.accuracy import evaluate
from compress.pipeline.inputs import Opened
from compress.quantization.budget import quantize_within
from compress.quantization.options import StaticOptions
from compress.quantization.static import quantize_static
from compress.steps import Measurement, Step

FEWEST = 100  # labelled samples; with fewer, a single answer is worth more than a point


def quantize_to_budget(
    graph: ir.Model, opened: Opened, max_drop: float, *, metric: Any = None, options: StaticOptions
) -> Step:
    """`quantize_static`, with as few layers in float as keep the calibration part within `max_drop`.

    The test part is never looked at, so that the gate judges the file on samples that had no part in choosing it.
    Where the calibration part cannot choose (no labels, too few samples), the plain int8 graph is returned with a note.

    Args:
        max_drop: points of top-1, or where there is no top-1 the metric's own unit; below 0, no loss is aimed for.
        metric: see `evaluation.accuracy.open_metric`.
    """
    calibration = opened.calibration()

    def measure(target: ir.Model) -> Measurement:
        return evaluate(target, calibration, metric=metric, threads=opened.threads, name="float or int8")

    before = measure(graph) if _has_targets(calibration) else None
    figure = "top1" if before is not None and before.top1 is not None else "metric"
    reason = _undecidable(before)
    if before is None or reason:
        return only_checked(quantize_static(graph, calibration, options, threads=opened.threads), reason)
    classes = figure == "top1"
    found = quantize_within(
        graph,
        calibration,
        lambda candidate: float(getattr(measure(candidate), figure)),
        max_drop=max(max_drop, 0.0) / (100 if classes else 1),
        baseline=float(getattr(before, figure)),
        percent=classes,
        scored_on=f"{before.samples} calibration samples (the test part had no say)",
        options=options,
        threads=opened.threads,
    )
    return found.step


def only_checked(step: Step, reason: str) -> Step:
    """Add the note that no layer was chosen for the budget, and why."""
    return replace(step, notes=(*step.notes, f"--max-drop could only be checked, no layer was chosen for it: {reason}"))


def _has_targets(batches: Iterable[Any]) -> bool:
    first = next(iter(batches), None)
    return first is not None and read_batch(first).target is not None


def _undecidable(before: Measurement | None) -> str:
    if before is None or (before.top1 is None and before.metric is None):
        return "the calibration part has no labels"
    if (before.samples or 0) < FEWEST:
        return f"the calibration part has {before.samples} samples, and choosing takes {FEWEST}"
    return ""
