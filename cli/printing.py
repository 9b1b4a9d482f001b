"""How a command ends: the table or one JSON document on stdout, then the gates."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from compress.errors import CompressError, GateError

if TYPE_CHECKING:
    from compress.pipeline.inputs import Settings
    from compress.reporting.changes import ReportChange
    from compress.reporting.report import Report


def put_out(
    shown: Report | ReportChange, text: Callable[[], str], paths: Sequence[Path] = (), *, as_json: bool = False
) -> None:
    """Write `shown` to `paths` and print it: its text, or one JSON document."""
    failure: CompressError | None = None
    for path in paths:
        try:
            shown.write(path)
        except CompressError as error:  # what there is to show is shown all the same
            failure = error
    click.echo(json.dumps(shown.as_dict(), indent=2) if as_json else text())
    if failure is not None:
        raise failure


def show(report: Report, settings: Settings, paths: Sequence[Path] = (), *, details: bool = False) -> None:
    """Print `report` (and write it to `paths`), with every column where `details`; raise GateError where a limit failed.

    The sentences of failed limits go to stderr with that error, and stand on stdout only in JSON.
    """
    put_out(
        report,
        lambda: report.text(verbose=settings.verbose, details=details, failures=False),
        paths,
        as_json=settings.json,
    )
    if report.failed:
        best = f"; the best file found is saved: {report.files['model']}" if "model" in report.files else ""
        raise GateError("; ".join(gate.sentence for gate in report.failed) + best)
