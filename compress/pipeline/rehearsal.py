"""Metrics, task, limits and training tried on a few samples of the float model, before any work starts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from compress import state
from compress.batches import read_batch
from compress.counting import counted
from compress.errors import InputError
from compress.evaluation.accuracy import Row
from compress.evaluation.runners import open_runner
from compress.measures import deciding
from compress.measures.figure import amount, is_number
from compress.measures.intervals import wilson
from compress.pipeline.inputs import Opened
from compress.pipeline.job import Job
from compress.reporting.environment import memory_of_machine
from compress.steps import Measure, Measurement
from compress.training.one_batch import rehearse
from compress.training.options import TrainOptions

SAMPLES = 64
MEMORY_SHARE = 0.5  # of this machine's memory that outputs held for a metric may take


def rehearsed(job: Job, *, models: int = 2) -> Job:
    """Return the job with its measures settled: how outputs and targets are read is found here, once for all.

    Args:
        models: how many models will be measured, for the memory that a metric on the whole data takes.

    Raises:
        InputError: a metric that fails, or gives no number; a limit that nothing can be held to, or that cannot fail.
        DataError: labels that the model has no output for, targets that the task has not.
    """
    if job.opened.test is None:
        _needs_no_data(job)
        return job
    with state.threads(job.settings.threads):
        batch, of = _few(job)
        read = read_batch(batch)
        runner = open_runner(job.opened.model, threads=job.settings.threads)
        outputs = runner(read)
        reading = job.measures.read(outputs, read.target)
        if reading.task.name == "classification" and not reading.lenient and read.target is not None:
            job.opened.data.check_labels(outputs[0].shape[1])  # type: ignore[union-attr]  # a test part has data
        settled = replace(job, measures=job.measures.settled(reading))
        row = Row(settled.measures.start(reading))
        row.tally.is_baseline = True
        row.add(outputs, read.target, None)
    _check_figures(settled, row.measurement("float", runner, None, intervals=not job.measures.metrics))
    _check_memory(settled, outputs, of, models)
    return settled


def _few(job: Job) -> tuple[Any, int]:
    """Samples from all over the test part (one that is sorted by class shows all of them), and how many it has."""
    data = job.opened.data
    assert data is not None and data.test is not None
    try:
        size = len(data.test)  # type: ignore[arg-type]  # what has none raises, and is told apart
    except TypeError:
        return next(iter(job.opened.loader("test"))), 0
    taken = min(SAMPLES, size)
    picked = [at * size // taken for at in range(taken)]
    return next(iter(job.opened.loader("test", batch_size=taken, sampler=picked))), size


def _needs_no_data(job: Job) -> None:
    asked = {f"metric {metric.spec!r}": "a test part of the data" for metric in job.measures.metrics} | (
        {"max-drop": "a test part of the data, with labels or a metric"} if job.limits.drop is not None else {}
    )
    for what, needs in asked.items():
        raise InputError(f"{what} needs {needs}; give it with --data, such as imagefolder:DIR, FILE.npz or mnist5k")


def _check_figures(job: Job, row: Measurement) -> None:
    for own in row.measures[: len(job.measures.metrics)]:
        if not is_number(own.value):
            raise InputError(f"metric {own.name!r} gives {own.value:g} on the float model's first samples; mend it")
    leading = job.measures.leading
    if leading and all(item.name != leading for item in row.measures):
        raise InputError(
            f"{leading} is no figure of this data, whose task is {row.extra['task']}; choose the task, or a metric of your own"
        )
    if job.limits.drop is None:
        return
    measure = deciding.deciding(row)
    limit = job.limits.drop
    if measure is None:
        reason = row.extra.get("no_figures") or row.extra.get("task_reason") or f"task {row.extra['task']}"
        raise InputError(f"max-drop has no figure to hold to ({reason}); give a metric of your own, or choose the task")
    if limit.never_fails(replace(measure, value=_most(measure, row))):
        raise InputError(
            f"max-drop {limit.words(measure)} can never fail: {measure.name} is {amount(measure.value, measure.unit)} to "
            f"begin with; limits are in its own unit{' (points)' if measure.unit == '%' else ''}, or a share of it such as 1%"
        )


def _most(measure: Measure, row: Measurement) -> float:
    """A value that the whole data will hardly exceed: few samples may be unlucky."""
    if measure.interval is not None:
        return max(measure.value, measure.interval[1])
    if measure.unit == "%" and 0 <= measure.value <= 1 and row.samples:
        return wilson(round(measure.value * row.samples), row.samples)[1]
    return measure.value


def _check_memory(job: Job, outputs: tuple[Tensor, ...], samples: int, models: int) -> None:
    """Refuse a metric on the whole data whose outputs this machine cannot hold."""
    whole = next((metric for metric in job.measures.metrics if metric.holds_all_outputs), None)
    if whole is None or not samples:
        return
    each = sum(value.nbytes for value in outputs) / max(1, len(outputs[0]) if outputs[0].dim() else 1)
    needed, there = each * samples * models, memory_of_machine()
    if there and needed > MEMORY_SHARE * there:
        raise InputError(
            f"metric {whole.spec!r} is called on the whole data: outputs of {counted(samples, 'sample')} and {counted(models, 'model')} take "
            f"{needed / 1e9:.0f} GB of this machine's {there / 1e9:.0f}; mark it per_batch = True, or give a class with "
            "update(outputs, target) and compute()"
        )


def rehearse_training(
    opened: Opened, module: nn.Module, options: TrainOptions, *, teacher: nn.Module | None = None
) -> None:
    """Try the loss, the teacher and the optimizer of `options` on one batch of the training part.

    Raises:
        CompressError: no training data, or what one batch of training would refuse.
    """
    opened.loader("train")  # says what is missing
    rehearse(module, opened.data, options, teacher=teacher)
