"""Rows of the tables that a new score, range, loss, rewrite is one line of: what it is, one line of help, what it needs."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Entry:
    """One row. Commands list the rows in their help, which must not wait for torch: `what` is imported when it is used."""

    what: Any  # a function or a class, or the place of one: "package.module:name"
    help: str  # one line
    needs: str = ""  # besides the model: data, labels; "": nothing

    def load(self) -> Any:
        """The function or class itself."""
        return at(self.what)


def at(what: Any) -> Any:
    """What stands at a place written "package.module:name", imported now; anything but a text is itself."""
    if not isinstance(what, str):
        return what
    module, _, name = what.partition(":")
    return getattr(importlib.import_module(module), name)


def listed(table: Mapping[str, Entry]) -> str:
    """The names of a table as a command's help has them.

    >>> listed({"l1": Entry(None, "sums"), "taylor": Entry(None, "gradients", needs="data")})
    'l1, taylor (needs data)'
    """
    return ", ".join(f"{name} (needs {entry.needs})" if entry.needs else name for name, entry in table.items())
