"""The candidates of a search as a table: what each was, what it came to, why it fell out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from compress.escaping import html as escape
from compress.measures import deciding
from compress.reporting import table

if TYPE_CHECKING:
    from compress.reporting.report import Report

HEADINGS = ("#", "candidate", "state", "outputs, dB", "size", "made in, s", "why")
TEXT = (1, 2, 6)  # columns of words


def listed(report: Report) -> Sequence[Mapping[str, Any]]:
    """The candidates, the winner and the front first; () where the report is of no search."""
    found = report.details.get("search", {}).get("candidates", ())
    order = {"winner": 0, "front": 1}
    return sorted(found, key=lambda item: (order.get(item["state"], 2), item["number"]))


def _cells(item: Mapping[str, Any]) -> tuple[str, ...]:
    noise = item["snr_db"]
    return (
        str(item["number"]),
        item["name"],
        item["state"],
        "–" if noise is None else f"{noise:.1f}",
        table.size(item["size_bytes"]) or "–",
        f"{item['seconds']:.1f}",
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
    head = "".join(f'<th><button type="button">{escape(name)}</button></th>' for name in HEADINGS)
    lines = "".join(_html_row(item) for item in found)
    return (
        '<h2>Candidates</h2><p class="soft">Outputs: signal to noise beside the float model’s on samples of the training part; '
        'what was beaten there was not measured.</p><div class="scroll"><table class="sortable"><thead>'
        f"<tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


def _html_row(item: Mapping[str, Any]) -> str:
    sort = (
        item["number"],
        item["name"],
        item["state"],
        item["snr_db"],
        item["size_bytes"],
        item["seconds"],
        item["reason"],
    )
    cells = "".join(
        f'<td{" class=text" if place in TEXT else ""} data-v="{escape("" if value is None else str(value))}">{escape(cell)}</td>'
        for place, (cell, value) in enumerate(zip(_cells(item), sort, strict=True))
    )
    kind = "" if item["state"] != "out" else "base"
    return f'<tr class="{kind}" title="{escape(chosen(item))}">{cells}</tr>'


def chosen(item: Mapping[str, Any]) -> str:
    """The choices of a candidate, and where its recipe is."""
    words = ", ".join(f"{name} {value}" for name, value in item["choices"].items())
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
        scale = 100.0 if figure.unit == "%" else 1.0
        found.append(("y", scale * limits["figure"], "most that may be lost"))
    return found
