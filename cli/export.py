"""`compress export`: a model to one ONNX file."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.help import Grouped, completing
from cli.options import data_options, examples, model_options, output_options, report_option, run_options
from cli.printing import show
from compress.errors import InputError, nearest
from compress.pipeline.inputs import DataSource, ModelSource, Settings
from compress.pipeline.outputs import Output

if TYPE_CHECKING:
    from compress.pipeline.export import ExportOptions

FORMATS = ("onnx", "openvino")
SHAPES = [
    click.option(
        "--dynamic",
        multiple=True,
        metavar="DIMS",
        help="batch; batch,sequence; x:0,2,3; none. Default: batch, and the length of token ids where that holds.",
    ),
    click.option("--batch", type=click.IntRange(1), metavar="N", help="A file of fixed shape that takes N samples."),
    click.option("--static-batch", is_flag=True, help="Fix the batch to that of the input shape."),
    click.option("--opset", type=int, metavar="N", help="ONNX opset of the file, from 13; default: the exporter's."),
    click.option("--no-check", is_flag=True, help="Do not compare with PyTorch."),
]


def shape_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add what an ONNX file shall be like; the command receives `shape: ExportOptions`."""

    @functools.wraps(command)
    def wrapper(*, dynamic: tuple[str, ...], no_check: bool, **rest: Any) -> Any:
        from compress.pipeline.export import ExportOptions

        given = {name: rest.pop(name) for name in ("batch", "static_batch", "opset")}
        return command(shape=ExportOptions(dynamic or None, check=not no_check, **given), **rest)

    decorated: Callable[..., Any] = wrapper
    for decorate in reversed(SHAPES):
        decorated = decorate(decorated)
    return decorated


@click.command(
    cls=Grouped,
    short_help="A model to one checked ONNX file.",
    epilog=examples(
        "compress export squeezenet1_1 --input-shape 2,3,64,64 -o small.onnx",
        "compress export compress.pipeline.quickstart:build --weights quickstart/weights.pt --data mnist5k -o digits.onnx",
    ),
)
@model_options
@data_options
@output_options("file")
@shape_options
@click.option(
    "--format",
    "form",
    type=completing(FORMATS),
    default="onnx",
    show_default=True,
    metavar="NAME",
    help="onnx, or openvino: two files (.xml, .bin), of an ONNX file too.",
)
@report_option
@run_options
def command(
    source: ModelSource,
    data: DataSource,
    output: Output,
    shape: ExportOptions,
    form: str,
    report: tuple[Path, ...],
    settings: Settings,
) -> None:
    """Export MODEL to an ONNX file and check it against PyTorch."""
    if form not in FORMATS:
        raise InputError(f"unknown format {form!r}; {nearest(form, FORMATS)}")
    if form == "openvino":
        names = ("dynamic", "batch", "opset", "static_batch")
        if idle := next((name.replace("_", "-") for name in names if getattr(shape, name)), None):
            raise InputError(f"--{idle} shapes an ONNX file; export that first, then it with --format openvino")
        from compress.pipeline.export_openvino import export_openvino

        show(export_openvino(source, data, output=output, settings=settings), settings, report)
        return
    from compress.pipeline.export import export

    show(export(source, data, output=output, options=shape, settings=settings), settings, report)
