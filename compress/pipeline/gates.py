"""Limits that the user sets on what ships, and how each row stands to them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from compress.errors import InputError
from compress.reporting.report import Gate
from compress.steps import Measurement

UNITS = {"": 1, "b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


@dataclass(frozen=True)
class Gates:
    """Limits that the user sets; every row but the baseline is held to them, and a row that stands alone. None: no limit."""

    max_drop: float | None = None  # percentage points of top-1 (of the metric's own unit, where one is given)
    require_speedup: float | None = None
    max_size: int | None = None  # bytes

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

    def check(self, rows: Sequence[Measurement], base: Measurement) -> tuple[Gate, ...]:
        """Hold each row to each limit; a figure that was not measured fails."""
        held = [row for row in rows if row.name != base.name] or rows
        return tuple(gate for row in held for gate in self._of(row, base))

    def _of(self, row: Measurement, base: Measurement) -> Iterable[Gate]:
        if self.max_drop is not None:
            drop, unit = _drop(row, base)
            # A tolerance below any real difference: 0.5 points must pass a limit of 0.5 whatever binary says.
            yield Gate(
                "max-drop", row.name, drop, self.max_drop, unit, drop is not None and drop <= self.max_drop + 1e-9
            )
        if self.require_speedup is not None:
            fast = row.speedup is not None and row.speedup >= self.require_speedup
            yield Gate("require-speedup", row.name, row.speedup, self.require_speedup, "×", fast)
        if self.max_size is not None:
            small = row.size_bytes is not None and row.size_bytes <= self.max_size
            yield Gate("max-size", row.name, row.size_bytes, self.max_size, " bytes", small)


def _drop(row: Measurement, base: Measurement) -> tuple[float | None, str]:
    if row.top1 is not None and base.top1 is not None:
        return 100 * (base.top1 - row.top1), " points"
    if row.metric is not None and base.metric is not None:
        return base.metric - row.metric, ""
    return None, " points"


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
