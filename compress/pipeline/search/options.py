"""What a search may take and what its winner must keep to: one frozen dataclass."""

from __future__ import annotations

from dataclasses import dataclass

from compress.errors import InputError
from compress.options import check_fields, choice, option

OBJECTIVES = ("auto", "accuracy", "latency", "size")


@dataclass(frozen=True)
class SearchOptions:
    """How long to search and by what. The command's and the recipe's names are these."""

    minutes: float = option(10.0, "minutes that the search may take", above=0, metavar="M")
    objective: str = choice(
        "auto", "what the winner is best in; auto: latency under --max-drop, else accuracy", OBJECTIVES, metavar="NAME"
    )
    max_latency: float | None = option(
        None, "largest p50 of the winner in ms, one sample on this machine", above=0, metavar="MS"
    )
    candidates: int | None = option(None, "candidates to try at most; default: as many as the time allows", low=1)
    workers: int = option(1, "processes that search together on this machine", low=1, metavar="N")

    def __post_init__(self) -> None:
        check_fields(self, "search")
        if self.minutes > 60 * 24 * 7:
            raise InputError(f"a search of {self.minutes:g} minutes is longer than a week; give --minutes in minutes")
