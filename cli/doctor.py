"""`compress doctor`: versions, CPU, target, what is missing."""

from __future__ import annotations

import json

import click

from cli.help import Grouped
from cli.options import examples


@click.command(
    cls=Grouped,
    short_help="Versions, CPU, target chosen, what is missing.",
    epilog=examples("compress doctor", "compress doctor --json"),
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout, nothing else.")
def command(as_json: bool) -> int:
    """Print versions, CPU features, the target chosen, and what is missing."""
    from compress.pipeline.doctor import diagnose

    found = diagnose()
    click.echo(json.dumps(found.as_dict(), indent=2) if as_json else found.text())
    return 2 if found.problems else 0
