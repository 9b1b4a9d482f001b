"""The candidates of a search as a table: what each was, what it came to, why it fell out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from compress.decibels import EQUAL_DB
from compress.escaping import html as escape
from compress.measures import deciding
from compress.measures.figure import LOWER, scale_of
from compress.reporting import table

if TYPE_CHECKING:
    from compress.reporting.report import Report

HEADINGS = ("candidate", "#", "state", "outputs", "size", "made in", "why")
TEXT = (0, 2, 6)  # columns of words


def listed(report: Report) -> Sequence[Mapping[str, Any]]:
    """The candidates, the winner and the front first; () where the report is of no search."""
    found = report.details.get("search", {}).get("candidates", ())
    order = {"winner": 0, "front": 1}
    return sorted(found, key=lambda item: (order.get(item["state"], 2), item["number"]))


def _cells(item: Mapping[str, Any]) -> tuple[str, ...]:
    noise = item["snr_db"]
    return (
        item["name"],
        str(item["number"]),
        item["state"],
        "–" if noise is None else "equal" if noise >= EQUAL_DB else f"{noise:.1f} dB",
        table.size(item["size_bytes"]) or "–",
        f"{item['seconds']:.1f} s",
        item["reason"],
    )


def as_markdown(report: Report) -> str:
    """The table, "" where there is none; the report's texts are escaped already."""
    found = listed(report)
    if not found:
        return ""
    rows = [_cells(item) for item in found]
    return "## Candidates\n\n" + tabulate(rows, HEADINGS, tablefmt="github", disable_numparse=True)


def as_html(report: Report) -> str:
    """The table, sortable, with the choices of each candidate when it is hovered over."""
    found = listed(report)
    if not found:
        return ""
    head = "".join(
        f'<th{" class=text" if place in TEXT else ""}><button type="button">{escape(name)}</button></th>'
        for place, name in enumerate(HEADINGS)
    )
    lines = "".join(_html_row(item) for item in found)
    return (
        '<h2>Candidates</h2><p class="soft">Outputs: signal to noise beside the float model’s on samples of the training part; '
        'what was beaten there was not measured.</p><div class="scroll"><table class="sortable stacked one"><thead>'
        f"<tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


def _html_row(item: Mapping[str, Any]) -> str:
    keys = ("name", "number", "state", "snr_db", "size_bytes", "seconds", "reason")
    cells = []
    for place, (heading, cell, key) in enumerate(zip(HEADINGS, _cells(item), keys, strict=True)):
        sort = "" if item[key] is None else str(item[key])
        text = escape(cell) or "–"
        if key == "name":  # what it is made of stands below: a phone has no pointer to hover with
            text = f"<span>{text}<small>{escape(chosen(item))}</small></span>"
        kind = " class=text" if place in TEXT else ""
        cells.append(f'<td{kind} data-v="{escape(sort)}" data-name="{escape(heading)}">{text}</td>')
    return f"<tr{' class=base' if item['state'] == 'out' else ''}>{''.join(cells)}</tr>"


def chosen(item: Mapping[str, Any]) -> str:
    """The choices of a candidate, and where its recipe is."""
    words = ", ".join(f"{name} {value}" for name, value in item["choices"].items() if (name, value) != ("removed", 0.0))
    return f"{words}; {item['recipe']}" if item["recipe"] else words


def hints(report: Report) -> dict[str, str]:
    """By row, what the page's picture says of it when it is hovered over."""
    return {item["name"]: chosen(item) for item in listed(report)}


def lines(report: Report) -> list[tuple[str, float, str]]:
    """The limits of a search as lines of the picture: the axis, the place on it, the words."""
    limits = report.details.get("search", {}).get("limits", {})
    found = []
    if "latency_ms" in limits:
        found.append(("x", limits["latency_ms"], f"at most {limits['latency_ms']:.3g} ms"))
    figure = deciding.deciding(report.base) if report.rows else None
    if "figure" in limits and figure is not None:
        least = "most" if figure.better == LOWER else "least"
        found.append(("y", scale_of(figure.unit) * limits["figure"], f"{least}, by --max-drop"))
    return found
