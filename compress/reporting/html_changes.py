"""Two reports side by side as one HTML page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compress.escaping import html as escape
from compress.reporting.html import page
from compress.reporting.html_parts import bar, card, cell

if TYPE_CHECKING:
    from compress.reporting.changes import FigureChange, ReportChange

COLOURS = {"better": ' class="good"', "worse": ' class="bad"'}
DRAWN = {"size": "Size on disk", "p50": "Median latency"}  # figures that have a picture


def render(change: ReportChange) -> str:
    """Render the whole page."""
    return page(change.title, _body(change))


def notebook(change: ReportChange) -> str:
    """The same for a notebook cell."""
    return cell(_body(change))


def _body(change: ReportChange) -> str:
    notes = "".join(f"<li>{escape(note)}</li>" for note in change.notes)
    pictures = "".join(_picture(change, figure, heading) for figure, heading in DRAWN.items())
    return (
        f'<h1>{escape(change.title)}</h1><p class="soft">{escape(change.after.title)}</p>{_counts(change)}'
        f'<div class="cards wide">{pictures}</div>{_table(change)}'
        f"{f'<ul>{notes}</ul>' if notes else ''}{_machines(change)}"
    )


def _counts(change: ReportChange) -> str:
    cards = (
        card(str(len(change.better)), "better", True if change.better else None),
        card(str(len(change.worse)), "worse", False if change.worse else None),
        card(str(change.rest), "the same, within noise or not judged", None),
    )
    return f'<div class="cards">{"".join(cards)}</div>'


def _picture(change: ReportChange, figure: str, heading: str) -> str:
    """Two bars for each model, the earlier one pale, as long as their share of the longest."""
    found = [(item, item.values) for item in change.figures if item.figure == figure and item.values is not None]
    if not found:
        return ""
    most = max(value for _, values in found for value in values)
    lines = "".join(_bars(item, values, most) for item, values in found)
    return f'<div class="card"><b class="small">{heading}</b><span>before (pale), after</span><div class="bars">{lines}</div></div>'


def _bars(item: FigureChange, values: tuple[float, float], most: float) -> str:
    before = bar(item.row, values[0] / most, item.before, pale=True)
    return before + bar("", values[1] / most, item.after, title=item.row)


def _table(change: ReportChange) -> str:
    head = "".join(f"<th>{escape(heading)}</th>" for heading in change.headings)
    lines = ""
    for item in change.figures:
        cells = [
            f'<td{COLOURS.get(item.verdict, "") if place >= 4 else ""} data-name="{escape(heading)}">{escape(cell) or "–"}</td>'
            for place, (heading, cell) in enumerate(zip(change.headings, item.cells))
        ]
        lines += f"<tr>{''.join(cells)}</tr>"
    return (
        f'<h2>What changed</h2><div class="scroll"><table class="stacked one"><thead><tr>{head}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )


def _machines(change: ReportChange) -> str:
    lines = "".join(
        f'<tr><td>{escape(name)}</td><td class="text">{escape(report.environment.sentence)}; '
        f"compress {escape(report.environment.compress)}<br><code>{escape(report.environment.command)}</code></td></tr>"
        for name, report in zip(change.names, (change.before, change.after))
    )
    return f'<h2>Machine, versions, command</h2><div class="scroll"><table><tbody>{lines}</tbody></table></div>'
