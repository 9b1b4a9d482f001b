"""The report as Markdown, fit for a pull request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from compress import escaping
from compress.escaping import each_text
from compress.reporting import candidates
from compress.reporting.words import interval
from compress.steps import Change, Step

if TYPE_CHECKING:
    from compress.reporting.report import Report

LONGEST = 40  # changes listed one by one; a bigger list is summed up by reason


def render(report: Report) -> str:
    """Render the whole report."""
    report = each_text(report, escaping.markdown)
    parts = [f"# {report.title}", report.table(style="github", details=True), report.layer_table(style="github")]
    intervals = [words for row in report.rows if (words := interval(row))]
    if intervals:
        parts.append("\n".join(f"* {words}" for words in intervals))
    if report.gates:
        parts.append(
            "\n".join(
                f"* {gate.mark}{' **failed**' if gate.passed is False else ''} {gate.sentence}" for gate in report.gates
            )
        )
    notes = [note for note in report.notes if note not in intervals]
    if notes:
        parts.append("\n".join(f"* {note}" for note in notes))
    parts.append(candidates.as_markdown(report))
    for step in report.steps:
        if step.changes or step.notes:
            parts.append(decisions(step))
    if report.files:
        parts.append("## Files\n\n" + "\n".join(f"* {name}: `{path}`" for name, path in report.files.items()))
    environment = report.environment
    parts.append(
        "## Where\n\n"
        f"{environment.sentence}; compress {environment.compress}, seed {environment.seed}.\n\n"
        f"```\n{environment.command}\n```"
    )
    return "\n\n".join(part for part in parts if part) + "\n"


def decisions(step: Step, *, style: str = "markdown") -> str:
    """What a step did and refused, with reasons: counted, in the plain style (`--verbose`) layer by layer."""
    heading = f"## {step.name}" if style == "markdown" else f"{step.name}:"
    bullet, code = ("* ", "`") if style == "markdown" else ("  ", "")
    counted = [
        f"{bullet}{count} × {action}" for action, count in Counter(c.action for c in step.done).most_common(LONGEST)
    ]
    one_by_one = [f"{bullet}{change.layer}: {change.action}" for change in step.done]
    done = counted if style == "markdown" else one_by_one
    longest = LONGEST if style == "markdown" else len(step.changes)
    notes = [f"{bullet}{note}" for note in step.notes]
    blocks = ["\n".join([*notes, *done])]
    for title, stays in (("Left as they were", True), ("Not done", False)):
        refused = _refusals([change for change in step.skipped if change.stays == stays], code, longest)
        if refused:
            lines = "\n".join(f"{bullet}{line}" for line in refused)
            blocks.append(f"{title}:\n\n{lines}" if style == "markdown" else f"{title.lower()}:\n{lines}")
    return (
        "\n\n".join([heading, *(block for block in blocks if block)])
        if style == "markdown"
        else "\n".join([heading, *blocks])
    )


def _refusals(changes: Sequence[Change], code: str, longest: int) -> list[str]:
    if len(changes) <= longest:
        return [f"{code}{change.layer}{code} ({change.action}): {change.reason}" for change in changes]
    counts = Counter((change.action, change.reason) for change in changes)
    return [f"{number} × {action}: {reason}" for (action, reason), number in counts.most_common()]
