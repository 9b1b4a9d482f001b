"""The progress line: candidates tried, the best so far, the time left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from compress.pipeline.search.candidate import Candidate, front_of
from compress.pipeline.search.clock import Clock, words
from compress.progress import track
from compress.reporting import table

NEAR_DB = 20.0  # outputs as near as this to the float model's are shown as the best so far


class Line:
    """One line on stderr, where it is a terminal."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._bar: Any = None

    def __enter__(self) -> Line:
        self._bar = track(None, "search", unit="candidate")
        self._bar.bar_format = "{desc}"
        return self

    def __exit__(self, *reason: Any) -> None:
        self._bar.close()

    def show(self, tried: Sequence[Candidate]) -> None:
        self._bar.set_description_str(line_of(tried, self.clock))


def line_of(tried: Sequence[Candidate], clock: Clock) -> str:
    """The line as text."""
    front = front_of(tried)
    near = [item for item in front if (item.snr_db or 0) >= NEAR_DB] or front
    smallest = min(near, key=lambda item: item.size_bytes or 0, default=None)
    best = ""
    if smallest is not None:
        best = f"; best so far {smallest.name}: {table.size(smallest.size_bytes)}, {smallest.snr_db:.1f} dB"
    return f"search: {len(tried)} tried, {len(front)} on the front{best}; {words(clock.left)} left"
