"""Counts in sentences: "1 node", "2 nodes"."""

from __future__ import annotations


def counted(number: int, one: str, many: str = "") -> str:
    """A number with its noun, and with the verb where it goes with the number; `many` is `one` with an "s" unless given.

    >>> counted(1, "node"), counted(2, "node"), counted(1, "node stays", "nodes stay")
    ('1 node', '2 nodes', '1 node stays')
    """
    return f"{number} {one if number == 1 else many or one + 's'}"
