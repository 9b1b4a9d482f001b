"""`compress compare`: models side by side, with gates for CI."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.help import Grouped
from cli.options import (
    data_options,
    examples,
    gate_options,
    measure_options,
    models_options,
    overwrite_option,
    report_option,
    run_options,
    runtime_option,
)
from cli.printing import show
from compress.pipeline.inputs import DataSource, ModelSource, Settings

if TYPE_CHECKING:
    from compress.measures.opening import Measures
    from compress.pipeline.gates import Gates


@click.command(
    cls=Grouped,
    short_help="Models side by side, with gates for CI.",
    epilog=examples(
        "compress compare quickstart/float.onnx quickstart/model.onnx --data mnist5k",
        "compress compare quickstart/float.onnx quickstart/model.onnx --data mnist5k --max-drop 1 --max-size 5MB",
    ),
)
@models_options
@data_options
@measure_options
@gate_options("Gate")
@click.option("--rounds", type=click.IntRange(1), default=50, show_default=True, help="Rounds of timing.")
@report_option
@overwrite_option
@run_options
@runtime_option
def command(
    sources: list[ModelSource],
    data: DataSource,
    measures: Measures,
    gates: Gates,
    rounds: int,
    report: tuple[Path, ...],
    settings: Settings,
) -> None:
    """Set models side by side; the first is the baseline.

    Exit code 3 when a row fails a gate; failing rows are marked ✗.
    """
    from compress.pipeline.compare import compare

    result = compare(sources, data, gates=gates, metric=measures, rounds=rounds, settings=settings)
    show(result, settings, report)
