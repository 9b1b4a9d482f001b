"""Texts from models, files and users, made harmless for the place where they are shown: one escape for each form.

A layer may be named "<img src=…>", a file may hold an escape sequence of terminals, a note may end a table's row.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable
from html import escape
from typing import Any

# C0, C1, what turns the direction of text, line separators: nothing of it belongs into a name.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_MARKDOWN = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "\\|", "`": "'"}
_LINK = re.compile(r"\]([(\[])")


def terminal(text: str) -> str:
    r"""Control characters become visible, so that no text moves the cursor or forges a line.

    >>> print(terminal("a\x1b[2Jb"))
    a\x1b[2Jb
    """
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def markdown(text: str) -> str:
    r"""No HTML, no link, no end of a code span or of a table's cell.

    >>> print(markdown("<b>|[x](y)"))
    &lt;b&gt;\|[x]\(y)
    """
    return _LINK.sub(r"]\\\1", "".join(_MARKDOWN.get(letter, letter) for letter in terminal(text)))


def html(text: str) -> str:
    r"""
    >>> html('<a href="x">\x1b')
    '&lt;a href=&quot;x&quot;&gt;\\x1b'
    """
    return escape(terminal(text))


def without_home(text: str) -> str:
    """The user's home folder as "~": a report is often shown to others."""
    home = os.path.expanduser("~")
    return text if len(home) < 2 or home not in text else re.sub(rf"{re.escape(home)}(?=[/\\\s'\":]|$)", "~", text)


def each_text(value: Any, change: Callable[[str], str]) -> Any:
    """A copy of frozen values, lists and mappings with `change` applied to every text in them; other values as they are."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, (tuple, list)):
        items = [each_text(item, change) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if type(value) is dict:
        return {each_text(key, change): each_text(item, change) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {item.name: getattr(value, item.name) for item in dataclasses.fields(value) if item.init}
        return dataclasses.replace(value, **{name: each_text(item, change) for name, item in fields.items()})
    return value
