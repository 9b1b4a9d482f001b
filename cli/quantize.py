"""`compress quantize`: a float model to a measured int8 file."""

from __future__ import annotations

from pathlib import Path

import click

from cli.options import Size, data_options, examples, model_options, output_options, report_option, run_options
from cli.printing import show
from compress.pipeline.inputs import DataSource, ModelSource, Settings
from compress.pipeline.outputs import Output


@click.command(
    short_help="A float model to a measured int8 ONNX file.",
    epilog=examples(
        "compress quantize quickstart/float.onnx --data mnist5k -o int8",
        "compress quantize mobilenet_v3_small --input-shape 2,3,64,64 --method dynamic -o dynamic",
    ),
)
@model_options
@data_options
@output_options()
@click.option("--method", metavar="NAME", default="static", show_default=True, help="static, dynamic or qat.")
@click.option("--runtime", metavar="NAME", default="onnx", show_default=True, help="onnx, or torch (deprecated there).")
@click.option("--target", metavar="CPU", default="auto", show_default=True, help="auto, x86-vnni, x86-avx2, arm64, …")
@click.option("--ranges", metavar="NAME", default="minmax", show_default=True, help="minmax, percentile, entropy, mse.")
@click.option("--weight-type", metavar="TYPE", default="int8", show_default=True, help="Dynamic: int8, uint8, float16.")
@click.option(
    "--weight-bits",
    type=click.IntRange(4, 8),
    default=8,
    show_default=True,
    help="Bits of a weight; fewer than 8 are simulated in int8.",
)
@click.option("--epochs", type=click.IntRange(1), help="QAT: epochs of training (default 2).")
@click.option("--lr", type=click.FloatRange(0, min_open=True), help="QAT: learning rate (default 0.0001).")
@click.option("--scales", metavar="NAME", default="learned", show_default=True, help="QAT: learned, observed, fixed.")
@click.option("--per-tensor", is_flag=True, help="One weight scale for a whole layer.")
@click.option("--op-types", metavar="A,B", default="", help="Quantize these operators only.")
@click.option("--exclude", metavar="NAME", multiple=True, help="Leave this node in float (repeatable).")
@click.option(
    "--tune-latency/--no-tune-latency",
    default=None,
    help="Time int8 and float forms here, keep the faster (default: with target auto and no --max-drop, where it takes "
    "less than a minute).",
)
@click.option("--metric", metavar="MODULE:NAME", help="Your own metric: (outputs, target) -> float, or a class.")
@click.option(
    "--max-drop",
    type=float,
    metavar="POINTS",
    help="Budget: most top-1 points lost. Static: keeps layers in float for it.",
)
@click.option("--require-speedup", type=click.FloatRange(0, min_open=True), metavar="X", help="Budget: least speed-up.")
@click.option("--max-size", type=Size(), help="Budget: largest file, such as 5MB.")
@report_option
@run_options
def command(
    source: ModelSource,
    data: DataSource,
    output: Output,
    method: str,
    runtime: str,
    target: str,
    ranges: str,
    weight_type: str,
    weight_bits: int,
    epochs: int | None,
    lr: float | None,
    scales: str,
    per_tensor: bool,
    op_types: str,
    exclude: tuple[str, ...],
    tune_latency: bool | None,
    metric: str | None,
    max_drop: float | None,
    require_speedup: float | None,
    max_size: int | None,
    report: Path | None,
    settings: Settings,
) -> None:
    """Turn MODEL into an int8 ONNX file, measured beside the float one.

    With --max-drop, static quantization leaves in float the fewest layers that
    keep the drop on the calibration samples inside it; the test part judges.

    Exit code 3 when a budget is not met; the files are saved all the same.
    """
    from compress.pipeline.closing import Gates
    from compress.pipeline.quantize import QuantizeOptions, quantize

    options = QuantizeOptions(
        method=method,
        runtime=runtime,
        target=target,
        ranges=ranges,
        per_channel=not per_tensor,
        weight_bits=weight_bits,
        epochs=epochs,
        lr=lr,
        scales=scales,
        weight_type=weight_type,
        op_types=tuple(name for name in op_types.split(",") if name),
        exclude=exclude,
        tune_latency=tune_latency,
    )
    gates = Gates(max_drop=max_drop, require_speedup=require_speedup, max_size=max_size)
    result = quantize(source, data, output=output, options=options, gates=gates, metric=metric, settings=settings)
    show(result, settings, report)
