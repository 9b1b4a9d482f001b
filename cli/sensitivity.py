"""`compress sensitivity`: which layer did it? Each layer quantized alone, the worst first."""

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
    measure_options,
    model_options,
    overwrite_option,
    report_option,
    run_options,
)
from cli.printing import show
from compress.pipeline.inputs import DataSource, ModelSource, Settings
from compress.pipeline.quantize_options import QuantizeOptions

if TYPE_CHECKING:
    from compress.measures.opening import Measures

# The options of quantization that change what a layer costs.
OF_LAYERS = ("target", "ranges", "weight_bits", "layer_bits", "per_channel", "op_types", "exclude")


def layer_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add those options; the command receives `options: QuantizeOptions`, without repairs: what is broken shall show."""
    fields = [field for field in own_fields(QuantizeOptions) if field.name in OF_LAYERS]

    @functools.wraps(command)
    def wrapper(**rest: Any) -> Any:
        return command(options=QuantizeOptions(accuracy="fast", **given(rest, fields)), **rest)

    return with_options(wrapper, fields)


@click.command(
    cls=Grouped,
    short_help="Which layer int8 hurts: each quantized alone.",
    epilog=examples(
        "compress sensitivity quickstart/float.onnx --data mnist5k",
        "compress sensitivity quickstart/float.onnx --data mnist5k --weight-bits 4 --report layers.html",
    ),
)
@model_options
@data_options
@click.option(
    "--samples", type=click.IntRange(1), default=64, show_default=True, metavar="N", help="Samples compared on."
)
@layer_options
@measure_options
@report_option
@overwrite_option
@run_options
def command(
    source: ModelSource,
    data: DataSource,
    samples: int,
    options: QuantizeOptions,
    measures: Measures,
    report: tuple[Path, ...],
    settings: Settings,
) -> None:
    """Quantize each layer of MODEL alone and show what that costs and gains.

    One line a layer, the worst first: signal to noise at the model's outputs,
    with its weights or its activations alone, and at its own output; what is
    lost on the samples; bytes and milliseconds gained. Nothing is saved.
    """
    from compress.pipeline.sensitivity import sensitivity

    show(
        sensitivity(source, data, options=options, samples=samples, metric=measures, settings=settings),
        settings,
        report,
    )
