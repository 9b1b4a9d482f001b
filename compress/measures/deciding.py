"""Which figure decides: the one definition for gates, the accuracy budget, the table, the page and the notes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compress.measures.figure import HIGHER, LOWER, amount, difference, is_number, scale_of, shown
from compress.steps import Measure, Measurement

UNKNOWN = ""  # direction of a metric in a measurement that was put together by hand


def deciding(row: Measurement) -> Measure | None:
    """The figure by which a model is judged: the user's own metric, else the first of its task; None where it has none."""
    if row.measures:
        return row.measures[0]
    # A measurement that was put together by hand, or read from an older report.
    if row.metric is not None:
        return Measure("metric", "", UNKNOWN, row.metric)
    return None if row.top1 is None else Measure("top-1", "%", HIGHER, row.top1)


def interval(row: Measurement) -> tuple[float, float] | None:
    """How sure what decides is: its 95 % interval, None where that is not known."""
    found = deciding(row)
    if found is None:
        return None
    if found.interval is None and "top1_interval" in row.extra and not row.measures:  # an older report
        low, high = row.extra["top1_interval"]
        return low, high
    return found.interval


def name_of(rows: Sequence[Measurement]) -> str:
    """What decides among these rows, as the table's heading has it."""
    return next((found.name for row in rows if (found := deciding(row)) is not None), "")


def loss(row: Measurement, base: Measurement) -> float | None:
    """How much worse a row is than the baseline in what decides (below 0: better); None where either has no figure."""
    mine, theirs = deciding(row), deciding(base)
    if mine is None or theirs is None or mine.name != theirs.name:
        return None
    if not (is_number(mine.value) and is_number(theirs.value)):
        return None
    if mine.better == UNKNOWN:  # the direction is not known: any change counts against the limit
        return abs(theirs.value - mine.value)
    return theirs.value - mine.value if mine.better == HIGHER else mine.value - theirs.value


def score(row: Measurement) -> float:
    """What decides as a number of which more is better, for a search; −∞ where there is none."""
    found = deciding(row)
    if found is None or not is_number(found.value):
        return float("-inf")
    return -found.value if found.better == LOWER else found.value


def change(row: Measurement, base: Measurement) -> str | None:
    """The difference of what decides as it is printed: points for fractions, the measure's own unit otherwise."""
    mine, theirs = deciding(row), deciding(base)
    if mine is None or theirs is None or mine.name != theirs.name:
        return None
    return difference(mine.value - theirs.value, mine.unit)


def value(row: Measurement) -> str | None:
    """What decides, printed."""
    found = deciding(row)
    return None if found is None else shown(found.value, found.unit)


@dataclass(frozen=True)
class Limit:
    """How much of what decides may be lost: in its own unit (points for fractions), or as a share of the baseline's value."""

    number: float
    relative: bool = False

    def allowed(self, base: Measure) -> float:
        """The limit as a difference of two values of `base`'s kind."""
        return self.number / 100 * abs(base.value) if self.relative else self.number / scale_of(base.unit)

    def words(self, base: Measure | None) -> str:
        """The limit as messages print it.

        >>> Limit(1.0).words(None), Limit(1.0, relative=True).words(None)
        ('1', '1%')
        """
        if self.relative:
            return f"{self.number:g}%"
        return f"{self.number:g}" if base is None else amount(self.number / scale_of(base.unit), base.unit)

    def never_fails(self, base: Measure) -> bool:
        """Whether nothing that a model may answer can lose more: the limit is all there is of a figure that ends at 0."""
        if base.better != HIGHER or base.value <= 0:
            return False
        return self.allowed(base) >= base.value
