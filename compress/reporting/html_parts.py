"""Pieces of the pages that several of them have: a bar with its name and value, a card, a notebook's cell."""

from __future__ import annotations

from compress.escaping import html as escape
from compress.reporting.page import CSS


def cell(inner: str) -> str:
    """`inner`, which is escaped already, for a notebook, whose page must keep its own look."""
    return f'<style>{CSS}</style><div class="cr"><main>{inner}</main></div>'


def bar(name: str, share: float, value: str, *, title: str | None = None, pale: bool = False) -> str:
    """One line of `.bars`: a name, a bar as long as `share` (of 1), its value in words; `title` on hovering, else the name."""
    fill = f'<span class="fill{" pale" if pale else ""}" style="width:{100 * share:.1f}%"></span>'
    return line(name, f'<span class="track bare">{fill}</span>', value, title=title)


def line(name: str, track: str, value: str, *, title: str | None = None) -> str:
    """The same around a track that is drawn already."""
    return (
        f'<span class="name" title="{escape(name if title is None else title)}"><bdi>{escape(name)}</bdi></span>{track}'
        f'<span class="value">{escape(value)}</span>'
    )


def card(head: str, text: str, good: bool | None, inner: str = "") -> str:
    """A figure with what it is below it; green where it is good, red where it is not."""
    colour = {True: ' class="good"', False: ' class="bad"', None: ""}[good]
    return f'<div class="card"><b{colour}>{escape(head)}</b><span>{escape(text)}</span>{inner}</div>'
