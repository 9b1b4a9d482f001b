"""`compress evaluate`: accuracy of one model."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from cli.help import Grouped
from cli.options import data_options, examples, model_options, overwrite_option, report_option, run_options
from cli.printing import show
from compress.pipeline.inputs import DataSource, ModelSource, Settings


@click.command(
    cls=Grouped,
    short_help="Top-1, top-5, loss, agreement, your own metric.",
    epilog=examples(
        "compress evaluate quickstart/model.onnx --data mnist5k",
        "compress evaluate quickstart/model.onnx --data mnist5k --baseline quickstart/float.onnx --json",
    ),
)
@model_options
@data_options
@click.option("--baseline", metavar="MODEL", help="Also report the change from, and the agreement with, this model.")
@click.option("--metric", metavar="MODULE:NAME", help="Your own metric: (outputs, target) -> float, or a class.")
@report_option
@overwrite_option
@run_options
def command(
    source: ModelSource,
    data: DataSource,
    baseline: str | None,
    metric: str | None,
    report: Path | None,
    settings: Settings,
) -> None:
    """Measure top-1, top-5 and loss on the test part of --data, with a 95 % interval."""
    from compress.pipeline.compare import evaluate

    base = None if baseline is None else dataclasses.replace(source, spec=baseline)
    result = evaluate(source, data, baseline=base, metric=metric, settings=settings)
    show(result, settings, report, details=True)
