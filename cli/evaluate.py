"""`compress evaluate`: accuracy of one model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.help import Grouped
from cli.options import (
    data_options,
    examples,
    measure_options,
    model_options,
    overwrite_option,
    report_option,
    run_options,
    runtime_option,
)
from cli.printing import show
from compress.pipeline.inputs import DataSource, ModelSource, Settings

if TYPE_CHECKING:
    from compress.measures.opening import Measures


@click.command(
    cls=Grouped,
    short_help="Figures of the task, agreement, your own metric.",
    epilog=examples(
        "compress evaluate quickstart/model.onnx --data mnist5k",
        "compress evaluate quickstart/model.onnx --data mnist5k --baseline quickstart/float.onnx --json",
    ),
)
@model_options
@data_options
@click.option("--baseline", metavar="MODEL", help="Also report the change from, and the agreement with, this model.")
@measure_options
@report_option
@overwrite_option
@run_options
@runtime_option
def command(
    source: ModelSource,
    data: DataSource,
    baseline: str | None,
    measures: Measures,
    report: tuple[Path, ...],
    settings: Settings,
) -> None:
    """Measure the figures of the task on the test part of --data, the one that decides with a 95 % interval."""
    from compress.pipeline.compare import evaluate

    base = None if baseline is None else dataclasses.replace(source, spec=baseline)
    result = evaluate(source, data, baseline=base, metric=measures, settings=settings)
    show(result, settings, report, details=True)
