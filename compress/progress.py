"""Progress of long work on stderr, none where stderr is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

_quiet = False


def set_quiet(quiet: bool) -> None:
    """Silence every bar of this process (the command's `--quiet`)."""
    global _quiet
    _quiet = quiet


def tell(text: str) -> None:
    """One line on stderr, at once, unless this process is quiet."""
    if not _quiet:
        print(f"compress: {text}", file=sys.stderr, flush=True)


def track(items: Iterable[Any] | None, description: str, *, total: int | None = None, unit: str = "batch") -> tqdm[Any]:
    """Return a tqdm bar over `items` on stderr; shown only where stderr is a terminal."""
    hidden = _quiet or not sys.stderr.isatty()
    return tqdm(items, desc=description, total=total, unit=unit, disable=hidden, leave=False, file=sys.stderr)
