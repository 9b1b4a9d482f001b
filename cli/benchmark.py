"""`compress benchmark`: latency, throughput, memory."""

from __future__ import annotations

from pathlib import Path

import click

from cli.help import Grouped
from cli.options import (
    data_options,
    examples,
    models_options,
    overwrite_option,
    report_option,
    run_options,
    runtime_option,
)
from cli.printing import show
from compress.pipeline.inputs import DataSource, ModelSource, Settings


@click.command(
    cls=Grouped,
    short_help="Latency, throughput and memory, models interleaved.",
    epilog=examples(
        "compress benchmark resnet18 --input-shape 1,3,64,64 --rounds 10",
        "compress benchmark quickstart/float.onnx quickstart/model.onnx --data mnist5k --threads 1",
    ),
)
@models_options
@data_options
@click.option("--rounds", type=click.IntRange(1), default=50, show_default=True, help="How often all take a turn.")
@report_option
@overwrite_option
@run_options
@runtime_option
def command(
    sources: list[ModelSource], data: DataSource, rounds: int, report: tuple[Path, ...], settings: Settings
) -> None:
    """Time models, interleaved round by round; --batch-size samples a run (default 1).

    The first model is the baseline; speed-up is the ratio of medians. Peak memory is measured for files,
    each in a process of its own.
    """
    from compress.pipeline.compare import benchmark

    result = benchmark(sources, data, rounds=rounds, batch=data.batch_size or 1, settings=settings)
    show(result, settings, report, details=True)
