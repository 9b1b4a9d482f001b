"""The one table that every compressing command ends with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tabulate import tabulate

from compress.measures import deciding
from compress.measures.figure import LOWER
from compress.measures.figure import shown as measure_shown
from compress.steps import Measure, Measurement


@dataclass(frozen=True)
class Column:
    """One column: its heading, and how a row's cell reads beside the baseline's row (None: nothing to show)."""

    heading: str
    cell: Callable[[Measurement, Measurement], str | None]
    unit: str = ""  # of cells that are written without it

    def with_unit(self, row: Measurement, base: Measurement) -> str | None:
        """The cell with its unit, where it stands without the heading."""
        cell = self.cell(row, base)
        return f"{cell} {self.unit}" if cell not in (None, "equal") and self.unit else cell

    @property
    def title(self) -> str:
        """The heading over cells that have their units."""
        return self.heading.removesuffix(f" {self.unit}")


def size(count: float | None) -> str | None:
    """Format bytes in decimal units, three significant digits.

    >>> size(46827520)
    '46.8 MB'
    """
    if count is None:
        return None
    for unit in ("B", "kB", "MB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def count(number: float | None) -> str | None:
    """Format a count of parameters or operations.

    >>> count(11689512)
    '11.7 M'
    """
    if number is None:
        return None
    for unit in ("", " k", " M"):
        if number < 999.5:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g} G"


def percent(fraction: float | None) -> str | None:
    return None if fraction is None else f"{100 * fraction:.2f} %"


def milliseconds(value: float | None) -> str | None:
    return None if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def ratio(row: Measurement, base: Measurement) -> str | None:
    return f"{row.size_bytes / base.size_bytes:.2f}×" if row.size_bytes and base.size_bytes else None


def points(after: float | None, before: float | None) -> str | None:
    """Format the change of a fraction, in percentage points; a real minus sign, and never "-0.00"."""
    if after is None or before is None:
        return None
    text = f"{100 * (after - before):+.2f}"
    return "0.00" if text in ("+0.00", "-0.00") else text.replace("-", "−")


def change(row: Measurement, base: Measurement) -> str | None:
    return None if row is base else deciding.change(row, base)


def fastness(row: Measurement, base: Measurement) -> str | None:
    return f"{row.speedup:.2f}×" if row.speedup is not None else None


def signal_to_noise(row: Measurement, base: Measurement) -> str | None:
    """Of the output that is furthest from the baseline's, in dB."""
    if row is base or not row.differences:
        return None
    found = [item.snr_db for item in row.differences if item.snr_db is not None]
    return f"{min(found):.1f}" if found else "equal"


def largest_difference(row: Measurement, base: Measurement) -> str | None:
    if row is base or not row.differences:
        return None
    return f"{max(item.largest for item in row.differences):.3g}"


def columns(rows: Sequence[Measurement]) -> tuple[Column, ...]:
    """The columns of the terminal. What decides stands under its own name, with ↓ where less is better."""
    # ONNX Runtime runs ONNX files and torch runs modules: the column is shown where something else runs a row.
    named = [Column("runtime", lambda row, base: runtime(row))] if _runtimes(rows) else []
    return (
        Column("model", lambda row, base: row.name),
        *named,
        Column("size", lambda row, base: size(row.size_bytes)),
        Column("ratio", ratio),
        Column("p50 ms", lambda row, base: milliseconds(row.p50_ms), "ms"),
        Column("speed-up", fastness),
        Column(_heading(rows), lambda row, base: deciding.value(row)),
        Column("change", change, _unit_of_change(rows)),
        Column("agreement", lambda row, base: None if row is base else percent(row.agreement)),
        Column("SNR dB", signal_to_noise, "dB"),
    )


def runtime(row: Measurement) -> str | None:
    """What ran a row, and in what its float layers computed where that is not float32."""
    precision = row.extra.get("float_precision", "float32")
    name = row.extra.get("runtime")
    return name if name is None or precision == "float32" else f"{name}, {precision}"


def _runtimes(rows: Sequence[Measurement]) -> bool:
    return any(row.extra.get("runtime") not in (None, "onnxruntime", "torch") for row in rows)


def more_columns(rows: Sequence[Measurement]) -> tuple[Column, ...]:
    """What `--verbose`, Markdown and HTML add: the other figures of the task first."""
    return (*_others(rows), *DETAILS)


def _unit_of_change(rows: Sequence[Measurement]) -> str:
    found = next((item for row in rows if (item := deciding.deciding(row)) is not None), None)
    return "" if found is None else "points" if found.unit == "%" else found.unit


def _heading(rows: Sequence[Measurement]) -> str:
    found = next((item for row in rows if (item := deciding.deciding(row)) is not None), None)
    return "top-1" if found is None else heading(found)


def heading(measure: Measure) -> str:
    return f"{measure.name} ↓" if measure.better == LOWER else measure.name


def _others(rows: Sequence[Measurement]) -> list[Column]:
    names = {item.name: heading(item) for row in rows for item in row.measures[1:]}
    if not any(row.measures for row in rows):
        return [Column("top-5", lambda row, base: percent(row.top5))]
    return [Column(title, _cell(name)) for name, title in names.items()]


def _cell(name: str) -> Callable[[Measurement, Measurement], str | None]:
    def cell(row: Measurement, base: Measurement) -> str | None:
        return next((measure_shown(item.value, item.unit) for item in row.measures[1:] if item.name == name), None)

    return cell


DETAILS = (
    Column("max diff", largest_difference),
    Column("loss", lambda row, base: None if row.loss is None else f"{row.loss:.4f}"),
    Column("p90 ms", lambda row, base: milliseconds(row.p90_ms), "ms"),
    Column("p99 ms", lambda row, base: milliseconds(row.p99_ms), "ms"),
    Column("samples/s", lambda row, base: None if row.throughput is None else f"{row.throughput:,.0f}", "/s"),
    Column("memory", lambda row, base: size(row.peak_memory_bytes)),
    Column("parameters", lambda row, base: count(row.parameters)),
    Column("MACs", lambda row, base: count(row.macs)),
    Column("sparsity", lambda row, base: percent(row.sparsity) if row.sparsity and row.sparsity >= 0.005 else None),
)


def shown(rows: Sequence[Measurement], base: Measurement, columns: Sequence[Column]) -> list[Column]:
    """The columns in which some row has something to show; one model alone is compared with nothing."""
    alone = ("ratio", "speed-up") if len(rows) == 1 else ()
    return [
        column
        for column in columns
        if column.heading not in alone and any(column.cell(row, base) is not None for row in rows)
    ]


def cells(
    rows: Sequence[Measurement], base: Measurement, columns: Sequence[Column]
) -> tuple[list[str], list[list[str | None]]]:
    """Return the headings and the cells, leaving out columns in which no row has anything to show."""
    kept = shown(rows, base, columns)
    return [column.heading for column in kept], [[column.cell(row, base) for column in kept] for row in rows]


def render(rows: Sequence[Measurement], base: Measurement, *, style: str = "simple", details: bool = False) -> str:
    """Render rows as text (`style` is tabulate's: "simple" for a terminal, "github" for Markdown)."""
    if not rows:
        return ""
    main, more = columns(rows), more_columns(rows)
    if style == "simple":
        headings, values = cells(rows, base, main)
        text = _tabulate(headings, values, style)
        if details:
            headings, values = cells(rows, base, (main[0], *more))
            text += "\n\n" + _tabulate(headings, values, style) if len(headings) > 1 else ""
        return text
    headings, values = cells(rows, base, (*main, *more) if details else main)
    return _tabulate(headings, values, style)


def _tabulate(headings: list[str], values: list[list[str | None]], style: str) -> str:
    filled = [[cell if cell is not None else "–" for cell in row] for row in values]
    align = ("left", *("right" for _ in headings[1:]))
    return tabulate(filled, headers=headings, tablefmt=style, colalign=align, disable_numparse=True)
