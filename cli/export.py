"""`compress export`: a model to one ONNX file."""

from __future__ import annotations

from pathlib import Path

import click

from cli.help import Grouped
from cli.options import data_options, examples, model_options, output_options, report_option, run_options
from cli.printing import show
from compress.pipeline.inputs import DataSource, ModelSource, Settings
from compress.pipeline.outputs import Output


@click.command(
    cls=Grouped,
    short_help="A model to one checked ONNX file.",
    epilog=examples(
        "compress export mobilenet_v3_small --input-shape 2,3,64,64 -o small.onnx",
        "compress export compress.pipeline.quickstart:build --weights quickstart/weights.pt --data mnist5k -o digits.onnx",
    ),
)
@model_options
@data_options
@output_options("file")
@click.option("--static-batch", is_flag=True, help="Fix the batch to that of the input shape.")
@click.option("--no-check", is_flag=True, help="Do not compare with PyTorch.")
@report_option
@run_options
def command(
    source: ModelSource,
    data: DataSource,
    output: Output,
    static_batch: bool,
    no_check: bool,
    report: tuple[Path, ...],
    settings: Settings,
) -> None:
    """Export MODEL to an ONNX file and check it against PyTorch."""
    from compress.pipeline.export import export

    result = export(source, data, output=output, dynamic_batch=not static_batch, check=not no_check, settings=settings)
    show(result, settings, report)
