"""The report as one self-contained HTML page: before and after, the table, pictures, layers, decisions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compress.escaping import html as escape
from compress.reporting import candidates
from compress.reporting.html_decisions import decisions
from compress.reporting.html_figures import figures
from compress.reporting.html_layers import confusion, histograms, layer_figures, layers
from compress.reporting.html_parts import cell
from compress.reporting.html_pictures import cards, picture
from compress.reporting.page import CSS, SCRIPT

if TYPE_CHECKING:
    from compress.reporting.report import Report


def render(report: Report) -> str:
    """Render the whole page."""
    return page(report.title, body(report))


def page(title: str, inner: str) -> str:
    """A page of our style around `inner`, which is escaped already."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f'<style>{CSS}</style></head><body class="cr"><main>{inner}</main><script>{SCRIPT}</script></body></html>\n'
    )


def notebook(report: Report) -> str:
    """Render cards, table and picture for a notebook cell, whose page must keep its own look."""
    inner = "".join([_heading(report), cards(report), figures(report), picture(report), notes(report)])
    return cell(inner)


def body(report: Report) -> str:
    """What stands on the page, in its order."""
    parts = [_heading(report), cards(report), figures(report), notes(report), layer_figures(report)]
    parts += [picture(report), candidates.as_html(report), confusion(report)]
    decided = "".join(decisions(step) for step in report.steps)
    parts += [layers(report), histograms(report), f"<h2>Decisions</h2>{decided}" if decided else "", where(report)]
    return "".join(parts)


def _heading(report: Report) -> str:
    return f'<h1>{escape(report.title)}</h1><p class="soft">{escape(report.environment.sentence)}</p>'


def notes(report: Report) -> str:
    """How each row stands to each limit, then the sentences below the terminal's table."""
    lines = []
    for gate in report.gates:
        colour = {True: ' class="good"', False: ' class="bad"', None: ""}[gate.passed]
        lines.append(f"<li><span{colour}>{gate.mark}</span> {escape(gate.sentence)}</li>")
    limits = f'<ul class="limits">{"".join(lines)}</ul>' if lines else ""
    sentences = "".join(f"<li>{escape(note)}</li>" for note in report.notes)
    return limits + (f"<ul>{sentences}</ul>" if sentences else "")


def where(report: Report) -> str:
    """Machine, versions, the command that makes it again."""
    environment = report.environment
    rows = [
        ("CPU", f"{environment.cpu}, {environment.cores} cores ({' '.join(environment.features)})"),
        ("threads", environment.counted_threads),
        ("seed", str(environment.seed)),
        ("system", f"{environment.system}, Python {environment.python}, compress {environment.compress}"),
        ("packages", ", ".join(f"{name} {version}" for name, version in environment.packages.items())),
        ("when", environment.when),
        *((name, path) for name, path in report.files.items()),
    ]
    lines = "".join(f'<tr><td>{escape(name)}</td><td class="text">{escape(value)}</td></tr>' for name, value in rows)
    return (
        f'<h2>Machine, versions, command</h2><div class="scroll"><table><tbody>{lines}</tbody></table></div>'
        f"<pre>{escape(environment.command)}</pre>"
    )
