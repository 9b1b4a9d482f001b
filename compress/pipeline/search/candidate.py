"""A candidate: what was drawn for it, what it came to, why it fell out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from compress.pipeline.search.space import name_of, runtime_of

MARGIN_DB = 1.0  # by which a candidate must be beaten on few samples to fall out there


@dataclass(frozen=True)
class Candidate:
    """One candidate of a search. Figures are None where it did not come so far.

    `early_db` and `snr_db` are how near its outputs are to the float model's (signal to noise of the worst output) on the
    first few samples, and on all that judge; `cost` counts its work, in multiply-accumulates of float32: it steers the
    search and is no latency. `reason` says why it fell out, "" where it has not.
    """

    number: int
    choices: Mapping[str, Any]
    early_db: float | None = None
    snr_db: float | None = None
    size_bytes: int | None = None
    cost: float | None = None
    seconds: float = 0.0  # that making and judging it took
    run_s: float = 0.0  # that one sample takes it here, in batches
    reason: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return name_of(self.choices)

    @property
    def values(self) -> tuple[float, float, float] | None:
        """The values that the sampler gets: quality, bytes, cost."""
        quality = self.snr_db if self.snr_db is not None else self.early_db
        if quality is None or self.size_bytes is None or self.cost is None:
            return None
        return quality, float(self.size_bytes), self.cost

    @property
    def stands(self) -> bool:
        """Whether it was judged on all samples and has not fallen out on the way."""
        return self.snr_db is not None and not self.reason

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Candidate:
        known = {item.name for item in fields(cls)}
        return cls(**{name: value for name, value in record.items() if name in known})


def beats(one: Sequence[float], other: Sequence[float], margin: float = 0.0) -> bool:
    """Whether `one` (quality, bytes, cost) is nowhere worse than `other` and somewhere better; by `margin` in quality.

    >>> beats((30.0, 10, 5), (29.5, 10, 5)), beats((30.0, 10, 5), (29.5, 10, 5), margin=1.0)
    (True, False)
    """
    no_worse = one[0] >= other[0] + margin and one[1] <= other[1] and one[2] <= other[2]
    return no_worse and (margin > 0 or tuple(one) != tuple(other))


def front_of(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Those that stand and that no other beats; of equals, the first.

    Files for different runtimes do not beat each other here: which runtime is faster, only a clock can tell.
    """
    standing = [item for item in candidates if item.stands]
    seen: set[tuple[str, tuple[float, float, float]]] = set()
    found = []
    for item in standing:
        values = item.values
        assert values is not None
        runtime = runtime_of(item.choices)
        rivals = [other.values for other in standing if other.values and runtime_of(other.choices) == runtime]
        if (runtime, values) not in seen and not any(beats(rival, values) for rival in rivals):
            found.append(item)
        seen.add((runtime, values))
    return found


def beaten_early(candidate: Candidate, others: Iterable[Candidate]) -> Candidate | None:
    """One that is clearly better on the first few samples, and neither larger nor costlier; None where none is."""
    if candidate.early_db is None or candidate.size_bytes is None or candidate.cost is None:
        return None
    mine = (candidate.early_db, float(candidate.size_bytes), candidate.cost)
    for other in others:
        if other.early_db is None or other.size_bytes is None or other.cost is None or not other.stands:
            continue
        if runtime_of(other.choices) != runtime_of(candidate.choices):
            continue
        if beats((other.early_db, float(other.size_bytes), other.cost), mine, MARGIN_DB):
            return other
    return None


def spread(front: Sequence[Candidate], most: int) -> list[Candidate]:
    """At most so many of a front, those kept that lie furthest from the others; the ends stay."""
    kept = list(front)
    while len(kept) > max(most, 1):
        kept.remove(min(kept, key=lambda item: (_lonely(item, kept), -item.number)))
    return kept


def _lonely(item: Candidate, kept: Sequence[Candidate]) -> float:
    """How far the nearest other is: decibels by tens, bytes and cost by their ratios."""
    assert item.values is not None
    nearest = math.inf
    ends = [min(kept, key=lambda one: (one.values or ())[place] * sign) for place, sign in ((0, -1), (1, 1), (2, 1))]
    if item in ends:
        return math.inf
    for other in kept:
        if other is item or other.values is None:
            continue
        steps = (
            (item.values[0] - other.values[0]) / 10,
            math.log2(max(item.values[1], 1) / max(other.values[1], 1)),
            math.log2(max(item.values[2], 1) / max(other.values[2], 1)),
        )
        nearest = min(nearest, math.hypot(*steps))
    return nearest
