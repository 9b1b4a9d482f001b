"""`compress train`: a model trained from scratch, or on from weights."""

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
from compress.training.options import TrainOptions

if TYPE_CHECKING:
    from compress.pipeline.train import RunChoices


@click.command(
    cls=Grouped,
    short_help="Train a model, alone or over several processes.",
    epilog=examples(
        "compress train compress.pipeline.quickstart:build --data mnist5k --epochs 2 -o trained",
        "compress train compress.pipeline.quickstart:build --data mnist5k --epochs 2 --optimizer adamw --lr 0.003 -o adamw",
    ),
)
@model_options
@data_options
@output_options()
@click.option("--distill", metavar="FILE", help="Weights of the teacher: MODEL's own architecture, or --teacher's.")
@click.option("--teacher", metavar="MODEL", help="Distil from this model; its weights with --distill, or its own.")
@run_choices
@report_option
@run_options
@training_options(TrainOptions)
def command(
    source: ModelSource,
    data: DataSource,
    output: Output,
    options: TrainOptions,
    distill: str | None,
    teacher: str | None,
    report: tuple[Path, ...],
    settings: Settings,
    run: RunChoices,
) -> None:
    """Train MODEL and leave its weights, ONNX file, checkpoints and report in OUT.

    --batch-size counts the samples of one step over all processes and accumulated passes (default 128). Over
    several machines: torchrun --nnodes N --nproc-per-node M --no-python compress train …
    """
    from compress.pipeline.train import train

    master = teacher_of(source, distill, teacher)
    result = train(source, data, output=output, options=options, teacher=master, settings=settings, **run)
    if result is not None:
        show(result, settings, report)
