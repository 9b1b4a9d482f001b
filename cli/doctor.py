"""`compress doctor`: versions, CPU, target, what is missing; what a runtime would refuse of a quantized file."""

from __future__ import annotations

import json
from pathlib import Path

import click

from cli.help import Grouped
from cli.options import examples

RUNTIMES = ("onnxruntime", "openvino", "tensorrt")  # quantization.rules.RULES, which a test holds this to


@click.command(
    cls=Grouped,
    short_help="Versions, CPU, target chosen, what is missing.",
    epilog=examples("compress doctor --json", "compress doctor quickstart/model.onnx --for tensorrt"),
)
@click.argument("file", required=False, metavar="[FILE]", type=click.Path(path_type=Path))
@click.option(
    "--for",
    "runtimes",
    multiple=True,
    type=click.Choice(RUNTIMES),
    help="List what this runtime would refuse of FILE, or run in float; may be repeated. Exit code 3 where it refuses.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout, nothing else.")
def command(file: Path | None, runtimes: tuple[str, ...], as_json: bool) -> int:
    """Print versions, CPU features, the target chosen, and what is missing; with FILE, what runtimes say to it."""
    if file is not None or runtimes:
        return _examine(file, runtimes or RUNTIMES, as_json)
    from compress.pipeline.doctor import diagnose

    found = diagnose()
    click.echo(json.dumps(found.as_dict(), indent=2) if as_json else found.text())
    return 2 if found.problems else 0


def _examine(file: Path | None, runtimes: tuple[str, ...], as_json: bool) -> int:
    if file is None:
        raise click.UsageError("--for judges a quantized file; give its name: compress doctor FILE --for RUNTIME")
    from compress.pipeline.suitability import suits

    found = [suits(file, name) for name in dict.fromkeys(runtimes)]
    if as_json:
        click.echo(json.dumps([item.as_dict() for item in found], indent=2))
    else:
        click.echo("\n\n".join(item.text() for item in found))
    return 0 if all(item.fits for item in found) else 3
