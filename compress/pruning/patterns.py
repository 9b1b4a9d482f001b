"""Layers that the user names: patterns to take in, patterns to leave out."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from torch import nn

from compress.errors import PruningError, nearest


def check_patterns(module: nn.Module, *patterns: str) -> None:
    """Refuse a pattern that names no module.

    Raises:
        PruningError: such a pattern; the nearest name is suggested.
    """
    names = [name for name, _ in module.named_modules() if name]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise PruningError(f"no layer is named {pattern!r}; {nearest(pattern, names)}")


def matches(layer: str, patterns: Sequence[str]) -> bool:
    """A pattern names a layer, or a module with everything inside it."""
    return any(fnmatch.fnmatch(layer, pattern) or fnmatch.fnmatch(layer, f"{pattern}.*") for pattern in patterns)


def as_patterns(names: Sequence[str] | str) -> tuple[str, ...]:
    """One name alone stands for itself, not for its letters."""
    return (names,) if isinstance(names, str) else tuple(names)
