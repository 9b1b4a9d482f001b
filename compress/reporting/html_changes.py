"""Two reports side by side as one HTML page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compress.escaping import html as escape
from compress.reporting.html import page
from compress.reporting.page import CSS

if TYPE_CHECKING:
    from compress.reporting.changes import FigureChange, ReportChange

COLOURS = {"better": ' class="good"', "worse": ' class="bad"'}
DRAWN = {"size": "Size on disk", "p50": "Median latency"}  # figures that have a picture


def render(change: ReportChange) -> str:
    """Render the whole page."""
    return page(change.title, _body(change))


def notebook(change: ReportChange) -> str:
    """The same for a notebook cell."""
    return f'<style>{CSS}</style><div class="cr"><main>{_body(change)}</main></div>'


def _body(change: ReportChange) -> str:
    notes = "".join(f"<li>{escape(note)}</li>" for note in change.notes)
    pictures = "".join(_picture(change, figure, heading) for figure, heading in DRAWN.items())
    return (
        f'<h1>{escape(change.title)}</h1><p class="soft">{escape(change.after.title)}</p>{_counts(change)}'
        f'<div class="cards wide">{pictures}</div>{_table(change)}'
        f"{f'<ul>{notes}</ul>' if notes else ''}{_machines(change)}"
    )


def _counts(change: ReportChange) -> str:
    rest = len(change.figures) - len(change.better) - len(change.worse)
    cards = [
        (len(change.better), "better", ' class="good"' if change.better else ""),
        (len(change.worse), "worse", ' class="bad"' if change.worse else ""),
        (rest, "the same, within noise or not judged", ""),
    ]
    inner = "".join(
        f'<div class="card"><b{colour}>{count}</b><span>{words}</span></div>' for count, words, colour in cards
    )
    return f'<div class="cards">{inner}</div>'


def _picture(change: ReportChange, figure: str, heading: str) -> str:
    """Two bars for each model, the earlier one pale, as long as their share of the longest."""
    found = [(item, item.values) for item in change.figures if item.figure == figure and item.values is not None]
    if not found:
        return ""
    most = max(value for _, values in found for value in values)
    lines = "".join(_bars(item, values, most) for item, values in found)
    return f'<div class="card"><b class="small">{heading}</b><span>before (pale), after</span><div class="bars">{lines}</div></div>'


def _bars(item: FigureChange, values: tuple[float, float], most: float) -> str:
    name = escape(item.row)
    parts = [
        f'<span class="name" title="{name}"><bdi>{shown}</bdi></span><span class="track bare">'
        f'<span class="fill{pale}" style="width:{100 * value / most:.1f}%"></span></span><span class="value">{escape(text)}</span>'
        for shown, value, text, pale in ((name, values[0], item.before, " pale"), ("", values[1], item.after, ""))
    ]
    return "".join(parts)


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
