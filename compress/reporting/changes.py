"""Two reports set side by side: what changed for each model, and which changes are more than noise.

A size is exact. A median latency p50 over n runs has the standard error 1.2533·σ/√n (of a median of normal values; σ is taken from
the quantiles: (p90 − p50)/1.2816), and two sessions on one machine differ by 3 % with nothing changed: a change counts where it
is beyond both. What decides (accuracy) has 95 % intervals over samples: where both reports hold the same baseline on the same
samples, the change from it is paired in each, and the two half-widths are added (the worst case of how they go together);
otherwise the intervals of the two values are independent, and their half-widths are added in squares.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from tabulate import tabulate

from compress import escaping
from compress.errors import InputError
from compress.escaping import each_text, without_home
from compress.measures import deciding
from compress.measures.deciding import UNKNOWN
from compress.measures.figure import HIGHER, difference, scale_of
from compress.reporting import html_changes, table
from compress.reporting.reading import read_report
from compress.reporting.record import plain
from compress.reporting.report import Gate, Report, write_form
from compress.reporting.words import NOISE
from compress.steps import Measure, Measurement
from compress.taking import takes

BETTER, WORSE, SAME, UNSURE, UNJUDGED = "better", "worse", "same", "within noise", "not judged"
MARKS = {BETTER: "✓", WORSE: "✗", SAME: "=", UNSURE: "≈", UNJUDGED: "–"}
HEADINGS = ("model", "figure", "before", "after", "change", "noise (95 %)", "verdict")
UNWRITTEN = "runs-as-written"  # the limit that no user sets: the runtime runs what the file says
SAME_SIZE = 0.001  # files nearer than this share differ by names and versions in their metadata


@dataclass(frozen=True)
class FigureChange:
    """One figure of one model in both reports, printed; `noise` is how far it may move with nothing changed."""

    row: str
    figure: str
    before: str
    after: str
    change: str
    noise: str
    verdict: str  # better, worse, same, within noise, not judged
    values: tuple[float, float] | None = None  # bytes or ms, before and after

    @property
    def cells(self) -> tuple[str, ...]:
        words = f"{MARKS[self.verdict]} {self.verdict}"
        return (self.row, self.figure, self.before, self.after, self.change, self.noise, words)


@dataclass(frozen=True)
class ReportChange:
    """What changed from one report to another. In a notebook it shows itself."""

    before: Report
    after: Report
    names: tuple[str, str]
    figures: tuple[FigureChange, ...]
    notes: tuple[str, ...] = ()
    headings: ClassVar[tuple[str, ...]] = HEADINGS  # of the table, in each of its forms

    @property
    def worse(self) -> tuple[FigureChange, ...]:
        """What is worse beyond noise, limits that hold no longer included."""
        return tuple(item for item in self.figures if item.verdict == WORSE)

    @property
    def better(self) -> tuple[FigureChange, ...]:
        return tuple(item for item in self.figures if item.verdict == BETTER)

    @property
    def rest(self) -> int:
        """How many figures are neither better nor worse."""
        return len(self.figures) - len(self.better) - len(self.worse)

    @property
    def title(self) -> str:
        return f"{self.names[0]} → {self.names[1]}"

    @property
    def summary(self) -> str:
        """The counts in one sentence."""
        return f"{len(self.better)} better, {len(self.worse)} worse, {self.rest} the same, within noise or not judged"

    def text(self) -> str:
        """What the command prints."""
        shown = each_text(self, escaping.terminal)
        return "\n\n".join([shown._table("simple"), "\n".join([shown.summary, *shown.notes])])

    def markdown(self) -> str:
        """The comparison as Markdown, fit for a pull request."""
        shown = each_text(self, escaping.markdown)
        notes = "\n".join(f"* {note}" for note in shown.notes)
        parts = [f"# {shown.title}", shown.summary + ".", shown._table("github"), notes]
        return "\n\n".join(part for part in parts if part) + "\n"

    def _table(self, style: str) -> str:
        align = ("left", "left", "right", "right", "right", "right", "left")
        lines, last = [], ""
        for item in self.figures:
            lines.append(("" if item.row == last and style == "simple" else item.row, *item.cells[1:]))
            last = item.row
        return tabulate(lines, HEADINGS, tablefmt=style, colalign=align, disable_numparse=True)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values: `names`, `figures` with their verdicts, `better`, `worse` (counts), `notes`."""
        values: dict[str, Any] = plain(
            {
                "schema_version": 1,
                "names": list(self.names),
                "figures": [vars(item) for item in self.figures],
                "better": len(self.better),
                "worse": len(self.worse),
                "notes": list(self.notes),
            }
        )
        return values

    def html(self) -> str:
        """The comparison as one self-contained page."""
        return html_changes.render(self)

    def write(self, path: str | Path) -> Path:
        """Write it; the suffix chooses the form: .md, .json or .html.

        Raises:
            InputError: another suffix.
            OutputError: the file cannot be written.
        """
        shown = each_text(self, without_home)
        return write_form(
            path,
            {
                ".md": shown.markdown,
                ".json": lambda: json.dumps(shown.as_dict(), indent=2, allow_nan=False) + "\n",
                ".html": shown.html,
            },
        )

    def _repr_html_(self) -> str:
        return html_changes.notebook(self)


def _report_of(value: Any) -> Report:
    return value if isinstance(value, Report) else read_report(value)


@takes(before=_report_of, after=_report_of)
def compare_reports(
    before: Report | str | Path, after: Report | str | Path, *, names: Sequence[str] = ("before", "after")
) -> ReportChange:
    """Set two reports of one model side by side, row by row. Each is a `Report` or the path of its JSON.

    Raises:
        InputError: a file is no report, or the two are of different models.
    """
    assert isinstance(before, Report) and isinstance(after, Report)  # read by `takes`
    if len(names) != 2:
        raise InputError(f"compare_reports: names takes two names, got {len(names)}")
    first, second = str(names[0]), str(names[1])
    _check_same_model(before, after, (first, second))
    shared = [(row, after.row(row.name)) for row in before.rows if any(row.name == other.name for other in after.rows)]
    paired = _share_baseline(before.base, after.base)
    moved = _machine_notes(before, after)
    figures = []
    for old, new in shared:
        figures += list(_figures(old, new, paired=paired, machine=not moved))
        figures += list(_gates(old.name, before, after))
    only = [
        f"only in {name}: {', '.join(missing)}"
        for name, one, other in ((first, before, after), (second, after, before))
        if (missing := [row.name for row in one.rows if row.name not in {item.name for item in other.rows}])
    ]
    notes = [*moved, *only]
    if not paired and any(item.figure == deciding.name_of(before.rows) for item in figures):
        notes.append("the baselines differ or were measured on other samples, so that accuracy is not paired")
    return ReportChange(before, after, (first, second), tuple(figures), tuple(notes))


def _check_same_model(before: Report, after: Report, names: tuple[str, str]) -> None:
    for name, report in zip(names, (before, after)):
        if not report.rows:
            raise InputError(f"{name} has no rows to compare")
    if not {row.name for row in before.rows} & {row.name for row in after.rows}:
        listed = [", ".join(row.name for row in report.rows) for report in (before, after)]
        raise InputError(f"no model is in both reports: {names[0]} has {listed[0]}; {names[1]} has {listed[1]}")
    old, new = before.base, after.base
    if old.name != new.name:
        return
    for kind in ("parameters", "macs"):
        mine, theirs = getattr(old, kind), getattr(new, kind)
        if mine and theirs and mine != theirs:
            word = "multiply-accumulates" if kind == "macs" else kind
            raise InputError(
                f"{names[1]} is a report of another model: {old.name} has {theirs:,} {word} there, {mine:,} in {names[0]}"
            )


def _share_baseline(old: Measurement, new: Measurement) -> bool:
    """Whether two baselines gave the same answers, as far as the reports tell: each change from it is then paired."""
    mine, theirs = deciding.deciding(old), deciding.deciding(new)
    if mine is None or theirs is None:
        return False
    same = ("class_right", "class_total", "confusions")
    return (
        (old.name, mine.name, old.samples) == (new.name, theirs.name, new.samples)
        and math.isclose(mine.value, theirs.value, rel_tol=1e-9, abs_tol=1e-12)
        and all(old.extra.get(key) == new.extra.get(key) for key in same)
    )


def _machine_notes(before: Report, after: Report) -> list[str]:
    """What makes latencies of the two reports no matter of the model."""
    one, two = before.environment, after.environment
    notes = []
    if (one.cpu, one.cores, one.features) != (two.cpu, two.cores, two.features):
        notes.append(
            f"latencies are of two machines and are not judged: {one.cpu}, {one.cores} cores; {two.cpu}, {two.cores}"
        )
    elif (one.threads, one.torch_threads) != (two.threads, two.torch_threads):
        notes.append(f"latencies are not judged: {one.counted_threads} before, {two.counted_threads} after")
    return notes


def _figures(old: Measurement, new: Measurement, *, paired: bool, machine: bool) -> Iterator[FigureChange]:
    if old.size_bytes and new.size_bytes:
        verdict = _verdict(new.size_bytes - old.size_bytes, SAME_SIZE * old.size_bytes, lower=True, exact=True)
        texts = table.size(old.size_bytes) or "", table.size(new.size_bytes) or ""
        yield _change(old.name, "size", texts, (old.size_bytes, new.size_bytes), "", verdict)
    judged = machine and "foreign" not in old.extra and "foreign" not in new.extra
    same_batch = old.extra.get("batch_size") == new.extra.get("batch_size")
    if old.p50_ms and new.p50_ms:
        noise = _timing_noise(old, new)
        verdict = _verdict(new.p50_ms - old.p50_ms, noise * old.p50_ms, lower=True)
        texts = f"{table.milliseconds(old.p50_ms)} ms", f"{table.milliseconds(new.p50_ms)} ms"
        verdict = verdict if judged and same_batch else UNJUDGED
        yield _change(old.name, "p50", texts, (old.p50_ms, new.p50_ms), f"± {100 * noise:.0f} %", verdict)
    yield from _deciding(old, new, paired=paired)
    if old.agreement is not None and new.agreement is not None and (old.agreement, new.agreement) != (1.0, 1.0):
        texts = table.percent(old.agreement) or "", table.percent(new.agreement) or ""
        moved = f"{difference(new.agreement - old.agreement, '%')} points"
        verdict = SAME if old.agreement == new.agreement else UNJUDGED
        yield FigureChange(old.name, "agreement", *texts, moved, "", verdict)


def _change(
    row: str, figure: str, texts: tuple[str, str], values: tuple[float, float], noise: str, verdict: str
) -> FigureChange:
    ratio = values[1] / values[0]
    moved = f"{100 * (ratio - 1):+.1f} %".replace("-", "−")
    moved = "0 %" if moved in ("+0.0 %", "−0.0 %") else moved
    return FigureChange(row, figure, *texts, moved, noise, verdict, values)


def _verdict(moved: float, noise: float, *, lower: bool, exact: bool = False) -> str:
    """Better or worse where a move is beyond its noise; of an exact figure, what is within it is the same."""
    if moved == 0 or (exact and abs(moved) <= noise):
        return SAME
    if abs(moved) <= noise:
        return UNSURE
    return BETTER if (moved < 0) == lower else WORSE


def _timing_noise(old: Measurement, new: Measurement) -> float:
    """How far the ratio of two medians may move with nothing changed, as a share (formula at the top)."""
    squares = 0.0
    for row in (old, new):
        runs = row.extra.get("timed_runs")
        runs = runs if isinstance(runs, int) and runs > 0 else 50
        spread = ((row.p90_ms or row.p50_ms or 0.0) - (row.p50_ms or 0.0)) / 1.2816
        squares += (1.96 * 1.2533 * spread / math.sqrt(runs) / (row.p50_ms or 1.0)) ** 2
    return max(NOISE, math.sqrt(squares))


def _deciding(old: Measurement, new: Measurement, *, paired: bool) -> Iterator[FigureChange]:
    mine, theirs = deciding.deciding(old), deciding.deciding(new)
    if mine is None or theirs is None:
        return
    texts = deciding.value(old) or "", deciding.value(new) or ""
    if mine.name != theirs.name:
        yield FigureChange(old.name, f"{mine.name}, then {theirs.name}", *texts, "", "", UNJUDGED)
        return
    moved = theirs.value - mine.value
    unit = "points" if mine.unit == "%" else mine.unit
    words = f"{difference(moved, mine.unit)} {unit}".strip()
    noise, how = _accuracy_noise(old, new, (mine, theirs), paired=paired)
    if moved == 0:
        verdict = SAME
    elif noise is None or mine.better == UNKNOWN or not math.isfinite(moved):
        verdict = UNJUDGED
    else:
        verdict = _verdict(moved, noise, lower=mine.better != HIGHER)
    shown = "" if noise is None else f"± {scale_of(mine.unit) * noise:.2g} {unit}{how}".replace(" ,", ",")
    yield FigureChange(old.name, table.heading(mine), *texts, words, shown, verdict)


def _accuracy_noise(
    old: Measurement, new: Measurement, found: tuple[Measure, Measure], *, paired: bool
) -> tuple[float | None, str]:
    """The half-width of the 95 % interval of the change between two reports, and whether it is paired."""
    changes = [item.change_interval for item in found]
    if paired and changes[0] is not None and changes[1] is not None:
        return sum((high - low) / 2 for low, high in (changes[0], changes[1])), ", paired"
    known = [deciding.interval(row) for row in (old, new)]
    if known[0] is None or known[1] is None:
        return None, ""
    return math.sqrt(sum(((high - low) / 2) ** 2 for low, high in (known[0], known[1]))), ""


def _gates(row: str, before: Report, after: Report) -> Iterator[FigureChange]:
    """How one model stands to the limits that both reports have, and to the one that no user sets."""
    first, second = ({gate.name: gate for gate in report.gates if gate.row == row} for report in (before, after))
    for name in dict.fromkeys([*second, *first]):
        old, new = first.get(name), second.get(name)
        if name == UNWRITTEN:  # there only where it fails
            verdict = SAME if old and new else WORSE if new else BETTER
            yield FigureChange(row, "runs as written", "no" if old else "yes", "no" if new else "yes", "", "", verdict)
        elif old is not None and new is not None:
            passed = old.passed, new.passed
            verdict = (
                SAME if passed[0] == passed[1] else UNJUDGED if None in passed else BETTER if new.passed else WORSE
            )
            yield FigureChange(row, f"--{name}", _stands(old), _stands(new), "", "", verdict)


def _stands(gate: Gate) -> str:
    word = {True: "passes", False: "fails", None: "not judged"}[gate.passed]
    return f"{word} {gate.words(gate.limit)}"
