"""`compress finetune`: training that starts from weights, with the unpruned model as teacher on request."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.help import Grouped
from cli.options import data_options, examples, model_options, output_options, report_option, run_options
from cli.printing import show
from cli.training_options import run_choices, teacher_of, training_options
from compress.pipeline.inputs import DataSource, ModelSource, Settings
from compress.pipeline.outputs import Output
from compress.training.options import FinetuneOptions

if TYPE_CHECKING:
    from compress.pipeline.train import RunChoices


@click.command(
    cls=Grouped,
    short_help="Train on from weights; distil from the unpruned model.",
    epilog=examples(
        "compress finetune compress.pipeline.quickstart:build --weights quickstart/weights.pt --data mnist5k"
        " --epochs 1 -o tuned",
        "compress finetune compress.pipeline.quickstart:build --weights quickstart/weights.pt --data mnist5k"
        " --epochs 1 --distill quickstart/weights.pt -o distilled",
    ),
)
@model_options
@data_options
@output_options()
@click.option("--distill", metavar="FILE", help="Weights of the teacher: MODEL as it was before pruning.")
@click.option("--teacher", metavar="MODEL", help="Another model as teacher; its weights with --distill.")
@run_choices
@report_option
@run_options
@training_options(FinetuneOptions)
def command(
    source: ModelSource,
    data: DataSource,
    output: Output,
    options: FinetuneOptions,
    distill: str | None,
    teacher: str | None,
    report: tuple[Path, ...],
    settings: Settings,
    run: RunChoices,
) -> None:
    """Train MODEL on from its --weights (a .pt2 or .onnx file carries its own) and report it beside what it was."""
    from compress.pipeline.train import train

    master = teacher_of(source, distill, teacher)
    result = train(
        source, data, output=output, options=options, teacher=master, finetune=True, settings=settings, **run
    )
    if result is not None:
        show(result, settings, report)
