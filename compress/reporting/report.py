"""What was measured, what was done, where: the value behind every form of the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from compress import escaping
from compress.errors import InputError
from compress.escaping import each_text, without_home
from compress.files import written_beside
from compress.reporting import html, layer_table, markdown, record, table
from compress.reporting.environment import Environment, describe
from compress.steps import Measurement, Step


@dataclass(frozen=True)
class Gate:
    """A limit that the user set, and what one row came to. `value` and `limit` are in `unit`.

    `passed` is None where the limit cannot be judged: `unjudged` then gives the reason. `measure` names the figure that max-drop is of.
    A limit that no user sets, "runs-as-written", says in `fault` what is wrong with the file.
    """

    name: str  # the option's name: "max-drop", "require-speedup", "max-size"
    row: str
    value: float | None
    limit: float
    unit: str
    passed: bool | None
    measure: str = ""
    unjudged: str = ""
    fault: str = ""

    @property
    def sentence(self) -> str:
        if self.fault:
            return f"{self.row}: {self.fault}"
        limit = f"--{self.name} {self.words(self.limit)}"
        if self.passed is None:
            return f"{self.row}: {limit} is not judged: {self.unjudged}"
        value = "not measured" if self.value is None else self.words(self.value)
        verdict = "is within" if self.passed else "fails"
        if not self.measure or self.value is None:
            return f"{self.row}: {value} {verdict} {limit}"
        moved = "worse" if self.value > 0 else "better" if self.value < 0 else ""
        change = f"{moved} by {self.words(abs(self.value))}" if moved else "as before"
        return f"{self.row}: {self.measure} {change}, which {verdict} {limit}"

    @property
    def mark(self) -> str:
        return "–" if self.passed is None else "✓" if self.passed else "✗"

    def words(self, value: float) -> str:
        """A value of this limit's figure in its unit."""
        return table.size(value) or "" if self.unit == " bytes" else f"{value:.4g}{self.unit}"

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self)}


@dataclass(frozen=True)
class Report:
    """Rows of figures, each of the very file it names; the steps that made them; machine and command.

    The first row is the baseline unless `baseline` names another. In a notebook it shows itself.
    """

    rows: tuple[Measurement, ...] = ()
    steps: tuple[Step, ...] = ()
    notes: tuple[str, ...] = ()
    title: str = "Compression report"
    baseline: str | None = None
    gates: tuple[Gate, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)  # what the output folder holds
    details: Mapping[str, Any] = field(default_factory=dict)  # per-layer figures and histograms, plain JSON values
    environment: Environment = field(default_factory=describe)

    @property
    def base(self) -> Measurement:
        """The row that the others are set beside."""
        return next((row for row in self.rows if row.name == self.baseline), self.rows[0])

    @property
    def deliverable(self) -> Measurement | None:
        """The row of the file that ships: the one named in `files`, else the last that is not the baseline."""
        others = [row for row in self.rows if row.name != self.base.name]
        named = [row for row in others if row.path is not None and row.path == self.files.get("model")]
        found = named or others
        return found[-1] if found else None

    @property
    def failed(self) -> tuple[Gate, ...]:
        return tuple(gate for gate in self.gates if gate.passed is False)

    def row(self, name: str) -> Measurement:
        """Return the row of that name.

        Raises:
            InputError: there is none.
        """
        for row in self.rows:
            if row.name == name:
                return row
        raise InputError(f"the report has no row {name!r}; it has {', '.join(row.name for row in self.rows)}")

    def table(self, *, style: str = "simple", details: bool = False) -> str:
        """The table, failing rows marked; `style` is tabulate's."""
        if not self.rows:
            return ""
        failing = {gate.row for gate in self.failed}
        marked = [replace(row, name=f"✗ {row.name}") if row.name in failing else row for row in self.rows]
        return table.render(marked, marked[self.rows.index(self.base)], style=style, details=details)

    def layer_table(self, *, style: str = "simple") -> str:
        """Single layers as a table, where the report is about them: it has no other rows."""
        return "" if self.rows else layer_table.render(self.details.get("layers") or (), style=style)

    def text(self, *, verbose: bool = False, details: bool = False, failures: bool = True) -> str:
        """What a command prints: the table, then sentences; without `failures`, the limits that failed are left to the caller."""
        report = each_text(self, escaping.terminal)
        parts = [report.table(details=verbose or details) if report.rows else report.layer_table()]
        notes = [*report.notes, *(gate.sentence for gate in report.gates if failures or gate.passed is not False)]
        if verbose:
            parts += [markdown.decisions(step, style="plain") for step in report.steps if step.changes]
        parts += ["\n".join(notes)] if notes else []
        if report.files:
            parts.append("\n".join(f"{name}: {path}" for name, path in report.files.items()))
        return "\n\n".join(part for part in parts if part)

    def markdown(self) -> str:
        """The report as Markdown, fit for a pull request."""
        return markdown.render(self)

    def as_dict(self) -> dict[str, Any]:
        """The report as plain JSON values (see `reporting/record.py` for the schema)."""
        return record.as_dict(self)

    def html(self) -> str:
        """The report as one self-contained page."""
        return html.render(self)

    def write(self, path: str | Path) -> Path:
        """Write the report; the suffix chooses the form: .md, .json or .html. Home folders are written as "~".

        Raises:
            InputError: another suffix.
            OutputError: the file cannot be written.
        """
        shown = each_text(self, without_home)
        return write_form(path, {".md": shown.markdown, ".json": lambda: record.dumps(shown), ".html": shown.html})

    def relocated(self, now: Path, final: Path) -> Report:
        """Return the report with paths under `now` written as they will be under `final`."""

        def moved(path: str | None) -> str | None:
            return (
                None
                if path is None
                else str(final / Path(path).relative_to(now))
                if Path(path).is_relative_to(now)
                else path
            )

        rows = tuple(replace(row, path=moved(row.path)) for row in self.rows)
        return replace(self, rows=rows, files={name: moved(path) or path for name, path in self.files.items()})

    def _repr_html_(self) -> str:
        return html.notebook(self)


SUFFIXES = (".md", ".json", ".html")


def write_form(path: str | Path, forms: Mapping[str, Callable[[], str]]) -> Path:
    """Write the form that the suffix of `path` chooses; `forms` has one for each of `SUFFIXES`.

    Raises:
        InputError: another suffix.
        OutputError: the file cannot be written.
    """
    path = Path(path)
    check_suffix(path)
    text = forms[path.suffix.lower()]()
    with written_beside(path) as beside:
        beside.write_text(text, encoding="utf-8", errors="backslashreplace")
    return path


def check_suffix(path: Path) -> None:
    """Refuse, before any work, a report file whose form is unknown.

    Raises:
        InputError: the suffix is none of .md, .json and .html.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"report file {str(path)!r} has suffix {path.suffix!r}; use one of {', '.join(SUFFIXES)}")
