"""The table of the page: the terminal's columns, every other figure below it on request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from compress.escaping import html as escape
from compress.measures import deciding
from compress.reporting import table
from compress.reporting.words import from_to
from compress.steps import Measurement

if TYPE_CHECKING:
    from compress.reporting.report import Report

# The option of a limit → the column of the figure that it is of.
COLUMN_OF = {"require-speedup": "speed-up", "max-size": "size", "max-latency": "p50 ms", "max-drop": "change"}

SORT_BY = {"size": "size_bytes", "p50 ms": "p50_ms"}

MEANINGS = {
    "ratio": "size beside the baseline's",
    "p50 ms": "half of the runs took no longer (the median)",
    "agreement": "share of samples with the same answer as the baseline",
    "SNR dB": "power of the baseline's outputs over that of the difference from them, of the worst output",
    "p90 ms": "nine in ten runs took no longer",
    "p99 ms": "99 in 100 runs took no longer",
    "samples/s": "samples, one run after the other",
    "memory": "peak of a process that only runs the model",
    "max diff": "largest difference of one element of an output from the baseline's",
    "MACs": "multiply-accumulates for one sample",
    "sparsity": "share of the weights that are zero",
}


def figures(report: Report) -> str:
    """The table of the terminal, sortable, and below it the other figures, a line for each."""
    if not report.rows:
        return ""
    base = report.base
    columns = table.shown(report.rows, base, table.columns(report.rows))
    head = "".join(f'<th><button type="button">{escape(column.title)}</button></th>' for column in columns)
    lines = "".join(_line(report, row, columns) for row in report.rows)
    return (
        f'<h2>Figures</h2><div class="scroll"><table class="sortable stacked"><thead><tr>{head}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>{_meanings(columns)}{more(report)}"
    )


def _line(report: Report, row: Measurement, columns: Sequence[table.Column]) -> str:
    failed = [COLUMN_OF[gate.name] for gate in report.failed if gate.row == row.name and gate.name in COLUMN_OF]
    cells = []
    for column in columns:
        cell = column.with_unit(row, report.base)
        text, colour = escape("–" if cell is None else cell), ' class="bad"' if column.heading in failed else ""
        if column.heading == "model" and any(gate.row == row.name for gate in report.failed):
            text = f"✗ {text}"
        cells.append(
            f'<td{colour} data-v="{escape(_sort_key(column, row, report.base))}" data-name="{escape(column.title)}">{text}</td>'
        )
    return f"<tr{' class=base' if row is report.base and len(report.rows) > 1 else ''}>{''.join(cells)}</tr>"


def _sort_key(column: table.Column, row: Measurement, base: Measurement) -> str:
    if column.heading in SORT_BY:
        value = getattr(row, SORT_BY[column.heading])
        return "" if value is None else f"{value!r}"
    cell = column.cell(row, base)
    return "" if cell is None else cell.replace("−", "-").rstrip(" %×")


def _meanings(columns: Sequence[table.Column]) -> str:
    words = [f"{column.title}: {MEANINGS[column.heading]}" for column in columns if column.heading in MEANINGS]
    return f'<p class="soft">{escape("; ".join(words))}.</p>' if words else ""


def more(report: Report) -> str:
    """Every other figure: a line for each figure, a column for each model."""
    rows, base = report.rows, report.base
    columns = table.shown(rows, base, [*_intervals(rows), *table.more_columns(rows)])
    if not columns:
        return ""
    head = "".join(f"<th>{escape(row.name)}</th>" for row in rows)
    lines = ""
    for column in columns:
        meaning = MEANINGS.get(column.heading, "")
        name = f"{escape(column.title)}<small>{escape(meaning)}</small>" if meaning else escape(column.title)
        found = [column.with_unit(row, base) for row in rows]
        cells = "".join(f"<td>{escape('–' if cell is None else cell)}</td>" for cell in found)
        lines += f'<tr><td class="text">{name}</td>{cells}</tr>'
    return (
        f'<details class="more"><summary>More figures ({len(columns)})</summary><div class="scroll"><table><thead><tr>'
        f"<th>figure</th>{head}</tr></thead><tbody>{lines}</tbody></table></div></details>"
    )


def _intervals(rows: Sequence[Measurement]) -> list[table.Column]:
    """How sure what decides is, as a column."""
    name = deciding.name_of(rows)

    def cell(row: Measurement, base: Measurement) -> str | None:
        found = deciding.deciding(row)
        known = deciding.interval(row)
        return None if found is None or known is None else from_to(known, found)

    return [table.Column(f"{name}, 95 % interval", cell)] if name else []
