"""What a search may take and how it goes about it: one frozen dataclass."""

from __future__ import annotations

from dataclasses import dataclass

from compress.errors import InputError
from compress.options import check_fields, choice, option

OBJECTIVES = ("auto", "accuracy", "latency", "size")
SAMPLERS = ("tpe", "random", "grid")
WEEK = 60 * 24 * 7


@dataclass(frozen=True)
class SearchOptions:
    """How long to search, and by what the winner is chosen. The command's and the recipe's names are these."""

    minutes: float = option(10.0, "minutes that the search may take", above=0, metavar="M")
    objective: str = choice(
        "auto",
        "what the winner is best in: accuracy, latency, size; auto: latency where --max-drop is given, accuracy where "
        "another limit is, else the fastest that loses hardly anything",
        OBJECTIVES,
        metavar="NAME",
    )
    trials: int | None = option(
        None, "candidates to try at most (default: as many as the time allows)", low=1, metavar="N"
    )
    sampler: str = choice(
        "tpe",
        "what draws candidates: tpe (learns from those before), random, grid (in order)",
        SAMPLERS,
        metavar="NAME",
    )
    workers: int = option(1, "processes that search together on this machine", low=1, metavar="N")

    resume: bool = option(False, "go on with the search that the folder holds", only_on=True)

    def __post_init__(self) -> None:
        check_fields(self, "search")
        if self.minutes > WEEK:
            raise InputError(f"a search of {self.minutes:g} minutes is longer than a week; give --minutes in minutes")
