"""A rule of a runtime about quantized graphs, and what it finds in one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import onnx_ir as ir

REFUSED, FLOAT, SLOW, WRONG = "refused", "float", "slower", "wrong"
EFFECTS = {
    REFUSED: "the runtime does not load the file",
    WRONG: "it computes something else than the file says",
    FLOAT: "these nodes run in float",
    SLOW: "it runs, with work that it would not need",
}


@dataclass(frozen=True)
class Rule:
    """What a runtime asks for; `find` yields, for each node that breaks it, its name and the value that does."""

    effect: str  # one of EFFECTS
    text: str
    source: str  # documentation or issue that it comes from
    find: Callable[[ir.Model], Iterator[str]]


@dataclass(frozen=True)
class Finding:
    """A rule that a file breaks, and where."""

    effect: str
    text: str
    source: str
    nodes: tuple[str, ...]


def broken(rules: tuple[Rule, ...], graph: ir.Model) -> tuple[Finding, ...]:
    """The rules that `graph` breaks, the gravest effects first."""
    order = list(EFFECTS)
    found = [Finding(rule.effect, rule.text, rule.source, tuple(rule.find(graph))) for rule in rules]
    return tuple(sorted((item for item in found if item.nodes), key=lambda item: order.index(item.effect)))
