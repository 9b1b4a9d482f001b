"""`compress compare`: models side by side, with gates for CI."""

from __future__ import annotations

from pathlib import Path

import click

from cli.options import Size, data_options, examples, models_options, overwrite_option, report_option, run_options
from cli.printing import show
from compress.pipeline.inputs import DataSource, ModelSource, Settings


@click.command(
    short_help="Models side by side, with gates for CI.",
    epilog=examples(
        "compress compare quickstart/float.onnx quickstart/model.onnx --data mnist5k",
        "compress compare quickstart/float.onnx quickstart/model.onnx --data mnist5k --max-drop 1 --max-size 5MB",
    ),
)
@models_options
@data_options
@click.option("--metric", metavar="MODULE:NAME", help="Your own metric: (outputs, target) -> float, or a class.")
@click.option("--max-drop", type=float, metavar="POINTS", help="Gate: most top-1 points that may be lost.")
@click.option("--require-speedup", type=click.FloatRange(0, min_open=True), metavar="X", help="Gate: least speed-up.")
@click.option("--max-size", type=Size(), help="Gate: largest file, such as 5MB.")
@click.option("--rounds", type=click.IntRange(1), default=50, show_default=True, help="Rounds of timing.")
@report_option
@overwrite_option
@run_options
def command(
    sources: list[ModelSource],
    data: DataSource,
    metric: str | None,
    max_drop: float | None,
    require_speedup: float | None,
    max_size: int | None,
    rounds: int,
    report: Path | None,
    settings: Settings,
) -> None:
    """Set models side by side; the first is the baseline.

    Exit code 3 when a row fails a gate; failing rows are marked ✗.
    """
    from compress.pipeline.closing import Gates
    from compress.pipeline.compare import compare

    gates = Gates(max_drop=max_drop, require_speedup=require_speedup, max_size=max_size)
    result = compare(sources, data, gates=gates, metric=metric, rounds=rounds, settings=settings)
    show(result, settings, report)
