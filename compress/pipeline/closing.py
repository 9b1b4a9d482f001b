"""The closing report: every deliverable measured on the file that ships, beside its baseline."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from compress.batches import Batch, first_batches, read_batch, resized_batch
from compress.evaluation.accuracy import evaluate_all
from compress.evaluation.latency import benchmark
from compress.evaluation.runners import Target, float_precision_of, model_in, runtime_of
from compress.evaluation.size import count_macs, count_parameters, open_model_of, size_bytes, sparsity
from compress.pipeline.details import layer_details
from compress.pipeline.job import Delivery, Job
from compress.pipeline.layer_noise import SAMPLES
from compress.pipeline.processors import made_elsewhere
from compress.reporting.environment import describe
from compress.reporting.report import Gate, Report
from compress.reporting.words import how_read, plain_words
from compress.steps import Measurement

BESIDE = 256  # samples that outputs are compared on where there is no test part


def measure(
    job: Job, targets: Mapping[str, Target], *, test: Iterable[Any] | None = None, baseline: str | None = None
) -> tuple[Measurement, ...]:
    """Measure everything: size, parameters, MACs, sparsity, latency as the job says, accuracy on `test` where given."""
    baseline = baseline or next(iter(targets))
    inputs, threads, timing = job.opened.inputs, job.settings.threads, job.timing
    rows = {name: _weigh(name, target, inputs) for name, target in targets.items()}
    if timing is not None:
        timed = benchmark(
            targets,
            inputs if job.opened.declared else resized_batch(inputs, timing.batch),
            baseline=baseline,
            rounds=timing.rounds,
            threads=threads,
            max_seconds=timing.max_seconds,
            memory=timing.memory,
        )
        rows = {name: merged(row, timed[name]) for name, row in rows.items()}
    if test is not None:
        scored = evaluate_all(targets, test, baseline=baseline, measures=job.measures, threads=threads)
        rows = {name: merged(row, scored[name]) for name, row in rows.items()}
    return tuple(rows.values())


def merged(first: Measurement, second: Measurement) -> Measurement:
    """Join two partial measurements of one model; what `second` measured wins."""
    empty: tuple[Any, ...] = (None, ())
    found = {
        name: value for name, value in vars(second).items() if value not in empty and name not in ("name", "extra")
    }
    return replace(first, **found, extra={**first.extra, **second.extra})


def _weigh(name: str, target: Target, inputs: Batch) -> Measurement:
    runtime, precision, target = runtime_of(target), float_precision_of(target), model_in(target)
    is_file = isinstance(target, (str, Path))
    macs = None
    opened = open_model_of(target)  # once: it may be large
    with contextlib.suppress(Exception):  # a model that cannot be counted can still be shipped
        macs = count_macs(opened, inputs)
    elsewhere = made_elsewhere(opened)
    graph = opened if isinstance(opened, ir.Model) else None
    return Measurement(
        name=name,
        path=str(target) if is_file else None,
        size_bytes=size_bytes(target, graph) if isinstance(target, (str, Path)) else None,
        parameters=count_parameters(opened),
        macs=macs,
        sparsity=sparsity(opened),
        extra={"runtime": runtime, "float_precision": precision} | ({"foreign": elsewhere} if elsewhere else {}),
    )


def closing_report(job: Job, made: Delivery) -> Report:
    """Measure what a job made on its data and inputs, and report.

    Where a deliverable is slower than the baseline, or worse than chance would explain, a note says so.
    """
    if job.output is not None:
        job = replace(job, measures=job.measures.forgiving())
    rows = measure(job, made.targets, test=job.opened.test, baseline=made.baseline)
    if job.opened.test is None and job.opened.calibration_samples:
        rows = _set_beside(job, made, rows)
    if made.scratch is not None:
        rows = tuple(replace(row, path=None) if _is_in(row.path, made.scratch) else row for row in rows)
    base = next((row for row in rows if row.name == made.baseline), rows[0])
    of_steps = [note for step in made.steps for note in step.notes]
    notes = [*job.opened.notes, *made.notes, *of_steps, *of_metrics(job), *how_read(rows), *plain_words(rows, base)]
    gated = [row for row in rows if made.gated is None or row.name in made.gated]
    foreign = {row.name: row.extra["foreign"] for row in rows if "foreign" in row.extra}
    return Report(
        rows=rows,
        steps=tuple(made.steps),
        notes=tuple(dict.fromkeys(notes)),
        title=made.title,
        baseline=base.name,
        gates=(*job.limits.check(gated, base, foreign=foreign), *_faults(made, gated or rows)),
        files=made.files,
        details=_details(job, made, made.source or _other_than(made.shipped, model_in(made.targets[base.name]))),
        environment=describe(threads=job.settings.threads, seed=job.settings.seed),
    )


def _faults(made: Delivery, rows: Sequence[Measurement]) -> Iterator[Gate]:
    """A failed limit for each fault of a step: such a result is not good, whatever was asked for."""
    shipped = next(
        (row.name for row in rows if made.shipped is not None and row.path == str(made.shipped)), rows[-1].name
    )
    for step in made.steps:
        for fault in step.faults:
            yield Gate("runs-as-written", shipped, None, 0.0, "", False, fault=fault)


def _set_beside(job: Job, made: Delivery, rows: tuple[Measurement, ...]) -> tuple[Measurement, ...]:
    """How far the outputs moved on calibration samples, without their labels: no accuracy is claimed on those."""
    batches = [replace(read_batch(raw), target=None) for raw in first_batches(job.opened.calibration(), BESIDE)]
    baseline = made.baseline or rows[0].name
    found = evaluate_all(made.targets, batches, baseline=baseline, threads=job.settings.threads)
    samples = sum(batch.samples for batch in batches)
    return tuple(
        replace(
            row,
            differences=found[row.name].differences,
            agreement=found[row.name].agreement,
            extra={**row.extra, "compared_on": f"{samples} calibration samples"},
        )
        for row in rows
    )


def of_metrics(job: Job) -> list[str]:
    """Notes on metrics whose direction is assumed: neither the user nor the metric states it."""
    return [
        f"{metric.name}: higher is taken as better; write min:{metric.spec} where less is"
        for metric in job.measures.metrics
        if not metric.direction_is_stated and job.opened.test is not None
    ]


def _is_in(path: str | None, folder: Path) -> bool:
    return path is not None and Path(path).is_relative_to(folder)


def _other_than(shipped: Path | None, source: Target) -> Target | None:
    """The float form of what ships; None where a model stands alone: beside itself it has no errors to show."""
    return None if source == shipped else source


def _details(job: Job, made: Delivery, source: Target | None) -> dict[str, Any]:
    if made.shipped is None:
        return {}
    data = job.opened.data
    has_calibration = data is not None and data.calibration is not None
    row = next((name for name, target in made.targets.items() if model_in(target) == made.shipped), None)
    found = layer_details(
        made.shipped,
        Path(source) if isinstance(source, (str, Path)) and Path(source).suffix == ".onnx" else None,
        job.opened.inputs,
        made.steps,
        samples=job.opened.loader("calibration", batch_size=SAMPLES) if has_calibration else None,
        threads=job.settings.threads,
        classes=data.classes if data is not None else None,
    )
    return found if row is None else {**found, "row": row}  # whose layers these are
