"""`compress report`: a report read again in another form, or two of them side by side."""

from __future__ import annotations

import json
from pathlib import Path

import click

from cli.help import Grouped
from cli.options import configure_logging, examples, overwrite_option, report_option
from compress.errors import CompressError, GateError


@click.command(
    cls=Grouped,
    short_help="Two reports side by side: what got better, what worse.",
    epilog=examples(
        "compress report quickstart/report.json",
        "compress report quickstart/report.json quickstart/report.json --fail-if-worse --report changes.md --overwrite",
    ),
)
@click.argument("first", metavar="REPORT.json", type=click.Path(path_type=Path))
@click.argument("second", metavar="[LATER.json]", required=False, type=click.Path(path_type=Path))
@click.option("--fail-if-worse", is_flag=True, help="Exit code 3 where a figure of LATER is worse beyond its noise.")
@report_option
@overwrite_option
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout, nothing else.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@click.option("-v", "--verbose", is_flag=True, help="Everything done and refused; tracebacks.")
def command(
    first: Path,
    second: Path | None,
    fail_if_worse: bool,
    report: tuple[Path, ...],
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Print a report, or what changed from one report to a later one of the same model.

    Reports are the .json files that --report and the output folders hold. Changes are marked: ✓ better, ✗ worse, = same,
    ≈ within noise, – not judged.
    """
    configure_logging(quiet=quiet, verbose=verbose)
    from compress.reporting.changes import compare_reports
    from compress.reporting.reading import read_report

    if second is None and fail_if_worse:
        raise click.UsageError("--fail-if-worse compares two reports; name the later one too")
    found = read_report(first)
    changed = None if second is None else compare_reports(found, second, names=(str(first), str(second)))
    shown = changed or found
    failure: CompressError | None = None
    for path in report:
        try:
            shown.write(path)
        except CompressError as error:  # what was read is shown all the same
            failure = error
    if as_json:
        click.echo(json.dumps(shown.as_dict(), indent=2))
    else:
        click.echo(found.text(verbose=verbose, details=verbose) if changed is None else changed.text())
    if failure is not None:
        raise failure
    if changed is not None and fail_if_worse and changed.worse:
        worse = [f"{item.row}: {item.figure} {item.before} → {item.after}" for item in changed.worse]
        raise GateError(f"worse than before: {'; '.join(worse)}")
