"""How a command ends: the table or one JSON document on stdout, then the gates."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from compress.errors import CompressError, GateError

if TYPE_CHECKING:
    from compress.pipeline.inputs import Settings
    from compress.reporting.report import Report


def show(report: Report, settings: Settings, paths: Sequence[Path] = (), *, details: bool = False) -> None:
    """Print `report` (and write it to `paths`), with every column where `details`; raise GateError where a limit failed.

    The sentences of failed limits go to stderr with that error, and stand on stdout only in JSON.
    """
    failure: CompressError | None = None
    for path in paths:
        try:
            report.write(path)
        except CompressError as error:  # what was measured is shown all the same
            failure = error
    if settings.json:
        click.echo(json.dumps(report.as_dict(), indent=2))
    else:
        click.echo(report.text(verbose=settings.verbose, details=details, failures=False))
    if failure is not None:
        raise failure
    if report.failed:
        best = f"; the best file found is saved: {report.files['model']}" if "model" in report.files else ""
        raise GateError("; ".join(gate.sentence for gate in report.failed) + best)
