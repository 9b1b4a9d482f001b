"""`compress quantize`: a float model to a measured int8 file."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.fields import given, own_fields, with_options
from cli.help import Grouped
from cli.options import (
    data_options,
    examples,
    gate_options,
    measure_options,
    model_options,
    output_options,
    precision_option,
    report_option,
    run_options,
)
from cli.printing import show
from compress.pipeline.inputs import DataSource, ModelSource, Settings
from compress.pipeline.outputs import Output
from compress.pipeline.quantize_options import QuantizeOptions

if TYPE_CHECKING:
    from compress.measures.opening import Measures
    from compress.pipeline.gates import Gates


def quantize_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add an option for each field of `QuantizeOptions`; the command receives `options`."""
    fields = own_fields(QuantizeOptions)

    @functools.wraps(command)
    def wrapper(**rest: Any) -> Any:
        return command(options=QuantizeOptions(**given(rest, fields)), **rest)

    return with_options(wrapper, fields)


@click.command(
    cls=Grouped,
    short_help="A float model to a measured int8 ONNX file.",
    epilog=examples(
        "compress quantize quickstart/float.onnx --data mnist5k -o int8",
        "compress quantize resnet18 --input-shape 2,3,64,64 --method dynamic -o dynamic",
    ),
)
@model_options
@data_options
@output_options()
@quantize_options
@measure_options
@gate_options("Budget")
@report_option
@run_options
@precision_option
def command(
    source: ModelSource,
    data: DataSource,
    output: Output,
    options: QuantizeOptions,
    measures: Measures,
    gates: Gates,
    report: tuple[Path, ...],
    settings: Settings,
) -> None:
    """Turn MODEL into an int8 ONNX file, measured beside the float one.

    With --max-drop, static quantization leaves in float the fewest layers that
    keep the drop on the calibration samples inside it; the test part judges.

    Exit code 3 when a budget is not met; the files are saved all the same.
    """
    from compress.pipeline.quantize import quantize

    result = quantize(source, data, output=output, options=options, gates=gates, metric=measures, settings=settings)
    show(result, settings, report)
