"""The jobs that only measure: evaluate, benchmark, compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from compress.errors import InputError
from compress.evaluation.runners import Runnable, Target, model_in, runtime_of
from compress.loading.models import WHOLE
from compress.measures.opening import open_measures
from compress.pipeline.closing import closing_report, measure, of_metrics
from compress.pipeline.for_runtime import in_others, offering
from compress.pipeline.gates import Gates
from compress.pipeline.inputs import DataSource, ModelSource, Opened, Settings, open_inputs, reopen
from compress.pipeline.job import Delivery, Job, Timing
from compress.pipeline.rehearsal import rehearsed
from compress.reporting.environment import describe
from compress.reporting.report import Report
from compress.reporting.words import how_read, interval, plain_words
from compress.runtimes.runtime import AUTO, DEFAULT, find_runtime
from compress.taking import takes


@takes(models=lambda models: sources_of(models))
def compare(
    models: Sequence[ModelSource | Any],
    data: DataSource | Any = None,
    *,
    gates: Gates | None = None,
    metric: Any = None,
    task: str = "auto",
    ignore_label: int | None = None,
    rounds: int = 50,
    batch: int = 1,
    memory: bool = False,
    settings: Settings | None = None,
) -> Report:
    """Set models side by side, the first as the baseline; without data everything but accuracy.

    `metric` (one or several, the first decides), `task` and `ignore_label` are as for `open_measures`.

    Raises:
        CompressError: one line for a model or data that cannot be used, or for one model and a gate that needs two.
    """
    settings, measures = settings or Settings(), open_measures(metric, task=task, ignore_label=ignore_label)
    if gates is not None and len(models) == 1:
        gates.check_alone()
    opened, targets, notes = _open_all(models, data, settings)
    timing = Timing(rounds, batch, memory)
    job = rehearsed(Job(opened, settings, None, gates or Gates(), measures, timing), models=len(targets))
    last = model_in(list(targets.values())[-1])
    made = Delivery(
        targets,
        f"Comparison with {next(iter(targets))}" if len(targets) > 1 else f"{next(iter(targets))}, measured",
        notes=notes,
        shipped=last if isinstance(last, Path) and last.suffix == ".onnx" else None,
    )
    return closing_report(job, made)


def evaluate(
    model: ModelSource | Any,
    data: DataSource | Any,
    *,
    baseline: ModelSource | Any = None,
    metric: Any = None,
    task: str = "auto",
    ignore_label: int | None = None,
    settings: Settings | None = None,
) -> Report:
    """Measure accuracy, size and operations of one model, beside a baseline where one is given; time nothing.

    Raises:
        InputError: no data, or data without a test part.
    """
    settings, measures = settings or Settings(), open_measures(metric, task=task, ignore_label=ignore_label)
    models = [model] if baseline is None else [baseline, model]
    opened, targets, opening_notes = _open_all(models, data, settings)
    test = opened.loader("test")
    job = rehearsed(Job(opened, settings, measures=measures, timing=None), models=len(targets))
    rows = measure(job, targets, test=test)
    notes = [words for row in rows if (words := interval(row))]
    if not any(row.measures for row in rows):
        reason = rows[0].extra.get("task_reason") or f"task {rows[0].extra['task']}"
        notes.append(f"no figure: {reason}; give a metric of your own, or name the task")
    return Report(
        rows=rows,
        notes=(*opening_notes, *notes, *of_metrics(job), *how_read(rows), *plain_words(rows, rows[0])),
        title=f"Accuracy on {opened.data.name if opened.data else 'no data'}",
        environment=describe(threads=settings.threads, seed=settings.seed),
    )


def benchmark(
    models: Sequence[ModelSource | Any],
    data: DataSource | Any = None,
    *,
    rounds: int = 50,
    batch: int = 1,
    memory: bool = True,
    settings: Settings | None = None,
) -> Report:
    """Time models, interleaved, on inputs of `batch` samples; accuracy is not measured."""
    settings = settings or Settings()
    opened, targets, notes = _open_all(models, data, settings)
    rows = measure(Job(opened, settings, timing=Timing(rounds, batch, memory, max_seconds=None)), targets)
    return Report(
        rows=rows,
        notes=notes,
        title=f"Latency, batch {batch}",
        environment=describe(threads=settings.threads, seed=settings.seed),
    )


def _open_all(
    models: Sequence[ModelSource | Any], data: DataSource | Any, settings: Settings
) -> tuple[Opened, dict[str, Target], tuple[str, ...]]:
    if not models:
        raise InputError("no model given; name at least one")
    sources = _own_options([ModelSource.of(model) for model in models])
    first = open_inputs(sources[0], data, settings)
    opened = [first, *(reopen(first, source, settings) for source in sources[1:])]
    names = unique_names([(item.name, source.spec) for item, source in zip(opened, sources)])
    notes = tuple(dict.fromkeys(note for item in opened for note in item.notes))
    targets: dict[str, Target] = {}
    crashes: list[str] = []
    for name, item in zip(names, opened):
        targets |= _in_runtimes(name, target_of(item), settings, crashes)
    return first, targets, (*notes, *crashes)


def _in_runtimes(name: str, target: Target, settings: Settings, crashes: list[str]) -> dict[str, Target]:
    """A model in the runtime asked for; with `auto` an ONNX file in each that is installed, but those that crash on it."""
    is_file = isinstance(target, Path) and target.suffix == ".onnx"
    runtime, precision = settings.runtime, settings.float_precision
    if runtime == AUTO:
        offering(precision)
        if not isinstance(target, Path) or not is_file:
            return {name: target}
        others, notes = in_others(target, DEFAULT, precision)
        crashes += notes
        return {name: target, **{f"{name} ({other})": found for other, found in others.items()}}
    asked = find_runtime(runtime)
    asked.check()
    asked.check_float_precision(precision)
    if asked.name == DEFAULT:
        return {name: target}
    if not asked.reads_graphs:  # modules and their files run in torch anyway
        if runtime_of(target) != asked.name:
            raise InputError(f"{asked.name} runs modules, .pt2 and .torchscript files, and {name!r} is an ONNX graph")
        return {name: target}
    if not is_file:
        raise InputError(f"{asked.name} runs ONNX files, and {name!r} is none; export it first")
    return {name: Runnable(target, asked.name, precision)}  # type: ignore[arg-type]  # what runtimes take


def sources_of(models: Any) -> list[ModelSource]:
    """Sources of several models: a sequence, a mapping by name, or one alone."""
    if isinstance(models, Mapping):
        return [replace(ModelSource.of(model), name=str(name)) for name, model in models.items()]
    return [ModelSource.of(model) for model in (models if isinstance(models, (list, tuple)) else [models])]


def _own_options(sources: Sequence[ModelSource]) -> list[ModelSource]:
    """`--weights` and `--model-arg` are for the models that are built from code; files beside those do without.

    Where no such model takes them they stay, for `open_model` to refuse.
    """
    taken = [(source.weights, source.model_args) for source in sources if not _is_whole(source)]
    return [
        replace(source, weights=None, model_args={})
        if _is_whole(source) and (source.weights, source.model_args) in taken
        else source
        for source in sources
    ]


def _is_whole(source: ModelSource) -> bool:
    return isinstance(source.spec, (str, Path)) and Path(source.spec).suffix.lower() in WHOLE


def target_of(opened: Opened) -> Target:
    """What to measure: the file itself where the model is a file that runs, else the module or graph."""
    path = opened.loaded.path
    return path if path is not None and path.suffix in (".onnx", ".pt2") else opened.model


def unique_names(named: Sequence[tuple[str, Any]]) -> list[str]:
    """Give each model a name of its own: file names, else (and for `model.onnx`, which says nothing) paths, else numbered.

    >>> unique_names([("model.onnx", "a/model.onnx"), ("model.onnx", "b/model.onnx")])
    ['a/model.onnx', 'b/model.onnx']
    """
    short = [name for name, _ in named]
    names = [
        str(spec) if (short.count(name) > 1 or name == "model") and isinstance(spec, (str, Path)) else name
        for name, spec in named
    ]
    found: list[str] = []
    for name in names:
        number = 1 + sum(1 for other in found if other == name or other.startswith(f"{name} #"))
        found.append(name if number == 1 else f"{name} #{number}")
    return found
