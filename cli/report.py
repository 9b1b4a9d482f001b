"""`compress report`: a report read again in another form, or two of them side by side."""

from __future__ import annotations

from pathlib import Path

import click

from cli.help import Grouped
from cli.options import configure_logging, examples, overwrite_option, report_option
from cli.printing import put_out
from compress.errors import GateError


@click.command(
    cls=Grouped,
    short_help="A report read again, or two: what got better, what worse.",
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
    if changed is None:
        put_out(found, lambda: found.text(verbose=verbose, details=verbose), report, as_json=as_json)
    else:
        put_out(changed, changed.text, report, as_json=as_json)
    if changed is not None and fail_if_worse and changed.worse:
        worse = [f"{item.row}: {item.figure} {item.before} → {item.after}" for item in changed.worse]
        raise GateError(f"worse than before: {'; '.join(worse)}")
