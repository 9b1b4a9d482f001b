"""A search as one process sees it: everything opened once, then candidate after candidate until the time is up."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.locking import locked_folder
from compress.pipeline.cache import StageCache
from compress.pipeline.inputs import Opened
from compress.pipeline.job import Job
from compress.pipeline.pipeline import start_key
from compress.pipeline.recipe import Recipe
from compress.pipeline.search.candidate import Candidate, front_of, spread
from compress.pipeline.search.clock import Clock, TimeIsUp, ending_at
from compress.pipeline.search.folder import MODEL, Front
from compress.pipeline.search.judging import Judge, judge_of
from compress.pipeline.search.making import Maker, judged
from compress.pipeline.search.options import SearchOptions
from compress.pipeline.search.showing import Line
from compress.pipeline.search.space import FLOAT, Space, is_plain, recipe_of
from compress.pipeline.search.study import INTERRUPTED, Study
from compress.pipeline.search.writing import recipe_text

STOP_AT = "stop_at"  # of the study: when the search ends and the measuring begins, in seconds of `time.time`
MOST = 16  # files that are measured in the end
SHARE = 0.5  # of the time that measuring may take at most
INTERVALS_S = 0.6  # that resampling takes for each file
CLOSING_S = 6.0  # that reports take
TIMING_S = 20.0
TIMING_SHARE = 0.06  # of the whole time, for latencies


@dataclass
class Session:
    """What the process that searches holds. `is_first`: it began the search, and alone takes files out of the front."""

    recipe: Recipe  # model, data, measures and limits; candidates add their own stages
    job: Job
    options: SearchOptions
    front: Front
    study: Study
    space: Space
    maker: Maker
    judge: Judge
    clock: Clock
    is_first: bool = True

    @property
    def opened(self) -> Opened:
        return self.job.opened

    @property
    def float_file(self) -> Path:
        return float_file(self.maker.cache, self.maker.key, self.maker)

    @property
    def tests(self) -> int:
        """Samples of the test part; 0 where there is none."""
        test = self.opened.test
        return 0 if test is None else len(test.dataset) if hasattr(test.dataset, "__len__") else self.judge.samples

    def survivors(self, tried: Sequence[Candidate]) -> list[Candidate]:
        """Those of the front that there is time to measure; the model as it came is among them."""
        front = front_of(tried)
        for most in range(MOST, 1, -1):
            found = spread(front, most)
            if self.measuring_s(found) <= SHARE * self.clock.total:
                break
        plain = [item for item in front if is_plain(item.choices)]
        return found if not plain or plain[0] in found else [*plain, *found]

    @property
    def timing_s(self) -> float:
        """What the latencies of all may take."""
        return min(TIMING_S, max(1.0, TIMING_SHARE * self.clock.total))

    def measuring_s(self, survivors: Sequence[Candidate]) -> float:
        """What measuring these in the end will take, about."""
        test = self.tests or self.judge.samples
        runs = sum(item.run_s for item in survivors)
        return 1.1 * test * (self.judge.reading_s + runs) + INTERVALS_S * len(survivors) + self.timing_s + CLOSING_S

    def stop_at(self, tried: Sequence[Candidate]) -> float:
        """When to stop drawing candidates; the first process tells the others."""
        if not self.is_first:
            stored = self.study.get(STOP_AT)
            return min(self.clock.ends, float(stored or 0.0))
        moment = self.clock.ends - self.measuring_s(self.survivors(tried))
        self.study.set(STOP_AT, moment)
        return moment


def open_session(
    recipe: Recipe, job: Job, options: SearchOptions, front: Front, clock: Clock, study: Study, space: Space
) -> Session:
    """Export the float model, and have it answer the samples that judge."""
    opened = job.opened
    cache = StageCache(front.root)
    key = start_key(recipe.model, recipe.data, opened, job.settings)
    maker = Maker(opened, recipe, cache, key)
    path = float_file(cache, key, maker)
    judge = judge_of(opened, path, threads=job.settings.threads)
    return Session(recipe, job, options, front, study, space, maker, judge, clock)


def float_file(cache: StageCache, key: str, maker: Maker) -> Path:
    """The model as it came, as a file that stays as long as the cache."""
    if not cache.has("float", key):
        half = cache.half()
        maker.file({"kind": FLOAT}, half / MODEL)
        cache.finish(half, "float", key)
    return cache.folder("float", key) / MODEL


def explore(session: Session) -> list[Candidate]:
    """Draw, make and judge candidates until the time is up, all were tried, or as many as were asked for.

    Returns:
        All that were tried, by other processes and earlier runs as well.
    """
    study, options = session.study, session.options
    tried = study.tried()
    with Line(session.clock) as line:
        while options.trials is None or _counted(tried) < options.trials:
            stop_at = session.stop_at(tried)
            if time.time() >= stop_at:
                break
            line.show(tried)
            drawn = study.ask(session.space)
            if drawn is None:
                break
            trial, choices = drawn
            with locked_folder(session.front.root, ".making-") as folder:
                candidate = _judged(session, trial.number, choices, tried, folder / MODEL, stop_at)
                study.tell(trial, candidate)
                tried = study.tried()
                _update(session, candidate, tried, folder / MODEL)
    return tried


def _counted(tried: Sequence[Candidate]) -> int:
    return sum(item.reason != INTERRUPTED for item in tried)


def _judged(
    session: Session, number: int, choices: dict[str, Any], tried: Sequence[Candidate], path: Path, stop_at: float
) -> Candidate:
    try:
        with ending_at(stop_at):
            return judged(number, choices, session.maker, session.judge, tried, path)
    except TimeIsUp:
        return Candidate(number, choices, reason=INTERRUPTED)


def _update(session: Session, candidate: Candidate, tried: Sequence[Candidate], path: Path) -> None:
    """Put a candidate that no other beats into the folder; take out what it beats."""
    front = front_of(tried)
    if any(item.number == candidate.number for item in front):
        session.front.keep(candidate.name, path, recipe_text_of(session, candidate))
    if session.is_first:
        session.front.only([item.name for item in front])


def recipe_text_of(session: Session, candidate: Candidate) -> str:
    """The candidate's recipe: `compress run` makes its file again, byte for byte."""
    heading = f"Candidate {candidate.number} of `compress search`: {candidate.name}\ncompress run {{this file}} -o OUT"
    return recipe_text(
        recipe_of(candidate.choices, session.recipe), heading=heading.replace("{this file}", "recipe.toml")
    )
