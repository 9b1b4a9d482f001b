"""Limits that the user sets on what ships, and how each row stands to them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from compress.errors import InputError
from compress.measures import deciding
from compress.measures.deciding import Limit
from compress.measures.figure import scale_of
from compress.reporting.report import Gate
from compress.steps import Measurement

UNITS = {"": 1, "b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


@dataclass(frozen=True)
class Gates:
    """Limits that the user sets; every row but the baseline is held to them, and a row that stands alone. None: no limit.

    `max_drop` is of the figure that decides (`measures/deciding.py`): in its own unit, which is points for figures shown in
    percent; or, written "1%", as a share of the baseline's value.
    """

    max_drop: float | str | None = None
    require_speedup: float | None = None
    max_size: int | None = None  # bytes
    max_latency: float | None = None  # ms, median

    def __post_init__(self) -> None:
        _ = self.drop  # refuses what is no limit
        limits = {
            "require-speedup": self.require_speedup,
            "max-size": self.max_size,
            "max-latency": self.max_latency,
        }
        for name, limit in limits.items():
            if limit is not None and not limit > 0:
                raise InputError(f"{name} must be above 0, got {limit:g}")

    @property
    def drop(self) -> Limit | None:
        """`max_drop` as a value."""
        return None if self.max_drop is None else parse_drop(self.max_drop)

    def check_alone(self) -> None:
        """Refuse the limits that set a model beside a baseline, where there is one model only.

        Raises:
            InputError: names the limit.
        """
        relative = {"--max-drop": self.max_drop, "--require-speedup": self.require_speedup}
        for option, limit in relative.items():
            if limit is not None:
                raise InputError(
                    f"{option} needs a second model; name the baseline first, then the model to hold to it"
                )

    def check(
        self, rows: Sequence[Measurement], base: Measurement, *, foreign: Mapping[str, str] | None = None
    ) -> tuple[Gate, ...]:
        """Hold each row to each limit; a figure that was not measured fails.

        `foreign` has, for rows made for another processor, the words for it: their speed is not judged here.
        """
        checked = [row for row in rows if row.name != base.name] or rows
        return tuple(gate for row in checked for gate in self._of(row, base, (foreign or {}).get(row.name, "")))

    def _of(self, row: Measurement, base: Measurement, foreign: str) -> Iterable[Gate]:
        if self.drop is not None:
            yield _drop_gate(self.drop, row, base)
        if self.require_speedup is not None:
            fast = row.speedup is not None and row.speedup >= self.require_speedup
            passed = None if foreign else fast
            yield Gate("require-speedup", row.name, row.speedup, self.require_speedup, "×", passed, unjudged=foreign)
        if self.max_size is not None:
            small = row.size_bytes is not None and row.size_bytes <= self.max_size
            yield Gate("max-size", row.name, row.size_bytes, self.max_size, " bytes", small)
        if self.max_latency is not None:
            soon = row.p50_ms is not None and row.p50_ms <= self.max_latency
            passed = None if foreign else soon
            yield Gate("max-latency", row.name, row.p50_ms, self.max_latency, " ms", passed, unjudged=foreign)


def _drop_gate(limit: Limit, row: Measurement, base: Measurement) -> Gate:
    measure, lost = deciding.deciding(base), deciding.loss(row, base)
    if measure is None:
        return Gate("max-drop", row.name, None, limit.number, "%" if limit.relative else "", False)
    scale = 100 / abs(measure.value) if limit.relative and measure.value else scale_of(measure.unit)
    unit = "%" if limit.relative else " points" if measure.unit == "%" else f" {measure.unit}".rstrip()
    value = None if lost is None else scale * lost
    # A tolerance below any real difference: 0.5 points must pass a limit of 0.5 whatever binary says.
    passed = value is not None and value <= limit.number + 1e-9 * max(1.0, abs(limit.number))
    return Gate("max-drop", row.name, value, limit.number, unit, passed, measure.name)


def parse_drop(text: float | str) -> Limit:
    """Read how much may be lost: a number in the measure's own unit, or a share of the baseline's value.

    >>> parse_drop("0.5"), parse_drop("1 %")
    (Limit(number=0.5, relative=False), Limit(number=1.0, relative=True))

    Raises:
        InputError: it is neither, below 0 (which would ask for a gain), or a share of 100 % and more, which nothing exceeds.
    """
    words = str(text).strip()
    relative = words.endswith("%")
    try:
        number = float(words.removesuffix("%").strip())
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise InputError(
            f"max-drop {words!r} is not a number; write 1 (in the measure's unit: points) or 1% (of its value)"
        )
    if number < 0:
        raise InputError(f"max-drop {words} would ask for a gain; give 0 or more, in the measure's unit or as 1%")
    if relative and number >= 100:
        raise InputError(
            f"max-drop {words} can never fail: it allows all of the figure to be lost; give less than 100%"
        )
    return Limit(number, relative)


def parse_size(text: str) -> int:
    """Read a file size in bytes.

    >>> parse_size("1.5MiB"), parse_size("300 kB")
    (1572864, 300000)

    Raises:
        InputError: it is not a number with a known unit.
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([a-zA-Z]*)\s*", text)
    if not match or match[2].lower() not in UNITS:
        raise InputError(f"{text!r} is not a size; write it as 5MB, 300kB or 1.5MiB")
    return int(float(match[1]) * UNITS[match[2].lower()])
