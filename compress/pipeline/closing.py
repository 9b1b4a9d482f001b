"""The closing report: every deliverable measured on the file that ships, beside its baseline."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from compress.batches import Batch
from compress.evaluation.accuracy import evaluate_all
from compress.evaluation.latency import benchmark
from compress.evaluation.runners import Target, resized_batch
from compress.evaluation.size import count_macs, count_parameters, size_bytes, sparsity
from compress.measures.opening import open_measures
from compress.pipeline.details import layer_details
from compress.pipeline.gates import Gates
from compress.pipeline.inputs import Opened, Settings
from compress.pipeline.layer_noise import SAMPLES
from compress.reporting.environment import describe
from compress.reporting.report import Report
from compress.steps import Measurement, Step

NOISE = 0.03  # medians nearer than this are told apart by chance
UNSTEADY = 2.0  # times the median that the slowest tenth of the runs takes at least where others use the machine
FEW = 200  # test samples of which one is half a point of accuracy
CLOSING_SECONDS = 20.0  # what timing may cost at the end of a command


def measure(
    targets: Mapping[str, Target],
    *,
    inputs: Batch,
    test: Iterable[Any] | None = None,
    baseline: str | None = None,
    metric: Any = None,
    threads: int | None = None,
    rounds: int = 50,
    latency: bool = True,
    memory: bool = False,
    max_seconds: float | None = CLOSING_SECONDS,
    batch: int = 1,
) -> tuple[Measurement, ...]:
    """Measure everything: size, parameters, MACs, sparsity, latency (of `batch` samples), accuracy where there is data."""
    baseline = baseline or next(iter(targets))
    rows = {name: _weigh(name, target, inputs) for name, target in targets.items()}
    if latency:
        one = resized_batch(inputs, batch)
        timed = benchmark(
            targets, one, baseline=baseline, rounds=rounds, threads=threads, max_seconds=max_seconds, memory=memory
        )
        rows = {name: merged(row, timed[name]) for name, row in rows.items()}
    if test is not None:
        scored = evaluate_all(targets, test, baseline=baseline, measures=open_measures(metric), threads=threads)
        rows = {name: merged(row, scored[name]) for name, row in rows.items()}
    return tuple(rows.values())


def merged(first: Measurement, second: Measurement) -> Measurement:
    """Join two partial measurements of one model; what `second` measured wins."""
    found = {name: value for name, value in vars(second).items() if value is not None and name not in ("name", "extra")}
    return replace(first, **found, extra={**first.extra, **second.extra})


def _weigh(name: str, target: Target, inputs: Batch) -> Measurement:
    is_file = isinstance(target, (str, Path))
    macs = None
    with contextlib.suppress(Exception):  # a model that cannot be counted can still be shipped
        macs = count_macs(target, inputs)
    return Measurement(
        name=name,
        path=str(target) if is_file else None,
        size_bytes=size_bytes(target) if isinstance(target, (str, Path)) else None,
        parameters=count_parameters(target),
        macs=macs,
        sparsity=sparsity(target),
    )


def closing_report(
    targets: Mapping[str, Target],
    opened: Opened,
    settings: Settings,
    *,
    title: str,
    steps: Sequence[Step] = (),
    notes: Sequence[str] = (),
    gates: Gates | None = None,
    baseline: str | None = None,
    metric: Any = None,
    files: Mapping[str, str] | None = None,
    shipped: Path | None = None,
    source: Path | None = None,
    gated: Sequence[str] | None = None,
    scratch: Path | None = None,
    **options: Any,
) -> Report:
    """Measure `targets` (first: the baseline) on the opened data and inputs, and report.

    With `shipped` (the ONNX file that is delivered) its layers are looked into for the HTML report, beside those of
    `source`, the same network in float (default: the baseline).
    `gated` names the rows that are held to the gates (default: all but the baseline). Rows of files in `scratch`, a
    folder that goes when the job ends, have no path.
    Where a deliverable is slower than the baseline, or worse than chance would explain, a note says so.
    """
    rows = measure(
        targets,
        inputs=opened.inputs,
        test=opened.test,
        baseline=baseline,
        metric=metric,
        threads=settings.threads,
        **options,
    )
    if scratch is not None:
        rows = tuple(replace(row, path=None) if _is_in(row.path, scratch) else row for row in rows)
    base = next((row for row in rows if row.name == baseline), rows[0])
    said = [note for step in steps for note in step.notes]
    return Report(
        rows=rows,
        steps=tuple(steps),
        notes=tuple(dict.fromkeys([*opened.notes, *notes, *said, *plain_words(rows, base)])),
        title=title,
        baseline=base.name,
        gates=(gates or Gates()).check([row for row in rows if gated is None or row.name in gated], base),
        files=files or {},
        details=_details(shipped, source or targets.get(base.name), opened, steps, settings),
        environment=describe(threads=settings.threads, seed=settings.seed),
    )


def _is_in(path: str | None, folder: Path) -> bool:
    return path is not None and Path(path).is_relative_to(folder)


def _details(
    shipped: Path | None,
    source: Target | None,
    opened: Opened,
    steps: Sequence[Step],
    settings: Settings,
) -> dict[str, Any]:
    if shipped is None:
        return {}
    has_calibration = opened.data is not None and opened.data.calibration is not None
    return layer_details(
        shipped,
        Path(source) if isinstance(source, (str, Path)) and Path(source).suffix == ".onnx" else None,
        opened.inputs,
        steps,
        samples=opened.loader("calibration", batch_size=SAMPLES) if has_calibration else None,
        threads=settings.threads,
        classes=opened.data.classes if opened.data is not None else None,
    )


def _unsteady(rows: Sequence[Measurement]) -> list[str]:
    """Say that the machine was busy: a median of disturbed runs can be ten times off, either way."""
    spread = {row.name: row.p90_ms / row.p50_ms for row in rows if row.p90_ms and row.p50_ms}
    worst = max(spread, key=lambda name: spread[name], default="")
    if not worst or spread[worst] < UNSTEADY:
        return []
    return [
        f"latencies are unsteady: the slowest tenth of the runs of {worst} took {spread[worst]:.1f} times the median or more; "
        "other work seems to use this machine, so time again when it is quiet"
    ]


def _few(base: Measurement) -> list[str]:
    """Say how coarse an accuracy on few samples is: a drop of less than one of them cannot be seen."""
    if base.top1 is None or not base.samples or base.samples >= FEW:
        return []
    return [f"top-1 is of {base.samples} test samples, {100 / base.samples:.1f} points each"]


def plain_words(rows: Sequence[Measurement], base: Measurement) -> list[str]:
    """Say what the user must not overlook: timings disturbed, slower than the baseline here, less accurate beyond chance."""
    words = [*_unsteady(rows), *_few(base)]
    last = rows[-1]
    for row in rows[1:-1]:
        if row.name != base.name and row.p50_ms and last.p50_ms and row.p50_ms < (1 - NOISE) * last.p50_ms:
            words.append(
                f"{row.name} is faster than {last.name} here: {row.p50_ms:.3g} ms against {last.p50_ms:.3g} ms"
            )
    for row in rows:
        if row.name == base.name:
            continue
        if row.speedup is not None and row.speedup < 1 - NOISE:
            words.append(
                f"{row.name} is slower than {base.name} on this machine: {row.p50_ms:.3g} ms against {base.p50_ms:.3g} ms "
                f"({row.speedup:.2f}×)"
            )
        if row.size_bytes and base.size_bytes and row.size_bytes > base.size_bytes:
            words.append(
                f"{row.name} is larger than {base.name}: {row.size_bytes:,} bytes against {base.size_bytes:,}; "
                "the network is so small that what is added weighs more than what is saved"
            )
        low, high = row.extra.get("change_interval", (0.0, 0.0))
        if high < 0 and row.top1 is not None and base.top1 is not None:
            words.append(
                f"{row.name} loses {100 * (base.top1 - row.top1):.2f} points of top-1, more than chance explains "
                f"(95 %: {-100 * high:.2f} to {-100 * low:.2f})"
            )
    return words
