"""`compress quickstart`: the whole way on small data."""

from __future__ import annotations

from pathlib import Path

import click

from cli.help import Grouped
from cli.options import examples, run_options
from cli.printing import show
from compress.pipeline.inputs import DataSource, Settings
from compress.pipeline.outputs import Output


@click.command(
    cls=Grouped,
    short_help="The whole way on real digits, in a minute or two.",
    epilog=examples("compress quickstart", "compress quickstart --epochs 1 -o quickstart-short --json"),
)
@click.option("--epochs", type=click.IntRange(1), default=3, show_default=True, help="Passes over the training data.")
@click.option("--data", metavar="SPEC", default="mnist5k", show_default=True, help="28×28 grey images of ten classes.")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    default=Path("quickstart"),
    show_default=True,
    metavar="OUT",
    help="The folder to write.",
)
@click.option("--overwrite", is_flag=True, help="Replace what OUT holds.")
@run_options
def command(epochs: int, data: str, out: Path, overwrite: bool, settings: Settings) -> None:
    """Train a small network on real digits, compress it, and measure every file.

    A minute or two on a laptop; nothing is downloaded.
    """
    from compress.pipeline.quickstart import quickstart

    result = quickstart(
        output=Output(out, overwrite=overwrite), epochs=epochs, data=DataSource(data), settings=settings
    )
    show(result, settings)
