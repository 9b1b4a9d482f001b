"""Optuna, the one door to it: a study in a journal file, which proposes candidates and records their values.

The sampler is a tree-structured Parzen estimator for several objectives (Watanabe, arXiv 2304.11127). Several processes,
on several machines with one folder, share a study through its journal. Optuna's own pruners serve studies of one objective
only (`Trial.report` refuses several), so which candidate falls out early is for the search's judge to say.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compress.errors import InputError, OutputError
from compress.files import cause
from compress.pipeline.search.candidate import Candidate
from compress.pipeline.search.space import Space
from compress.state import unwarned

JOURNAL = "study.journal"
NAME = "compress"
RECORD, PROCESS = "record", "process"
STARTUP = 8  # draws at random before the estimator has anything to go by
INTERRUPTED = "interrupted"  # reason of candidates whose process ended before they did
LOCKED = 10  # seconds without a change of the journal, after which its lock is a dead process's
REPEATS = 20  # draws of what was drawn before, after which the first of those not yet drawn is taken


class Study:
    """A study of three objectives: quality (higher is better), bytes and cost (lower is better).

    The values that the sampler gets must repeat exactly from run to run, so no measured time is among them. It is made anew for each
    candidate from the seed and the number of those told before: a search that was interrupted goes on as if it had not been.
    """

    def __init__(self, folder: Path, *, seed: int, sampler: str = "tpe") -> None:
        optuna = _optuna()
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

        self.seed, self.sampler, self._optuna = seed, sampler, optuna
        _mend(folder / JOURNAL)
        try:
            # The lock is a link to the path that it is given, and its age is the linked file's: a relative path leads
            # nowhere from there, and what a killed process left would be waited for without an end.
            path = str((folder / JOURNAL).absolute())
            lock = Path(f"{path}.lock")
            if lock.is_symlink() and not lock.exists():  # of a folder that has moved since
                lock.unlink(missing_ok=True)
            with unwarned():
                storage = JournalStorage(
                    JournalFileBackend(path, lock_obj=JournalFileSymlinkLock(path, grace_period=LOCKED))
                )
                self._study = optuna.create_study(
                    study_name=NAME,
                    storage=storage,
                    directions=["maximize", "minimize", "minimize"],
                    load_if_exists=True,
                )
        except (ValueError, KeyError) as error:
            raise OutputError(
                f"{str(folder / JOURNAL)!r} is no journal of a search ({cause(error)}); choose another -o"
            ) from error

    @staticmethod
    def exists(folder: Path) -> bool:
        return (folder / JOURNAL).is_file()

    def get(self, key: str) -> Any:
        return self._study.user_attrs.get(key)

    def set(self, key: str, value: Any) -> None:
        self._study.set_user_attr(key, value)

    def enqueue(self, choices: Sequence[Mapping[str, Any]]) -> None:
        """Try these next, in this order."""
        with unwarned():
            for one in choices:
                self._study.enqueue_trial(dict(one))

    def ask(self, space: Space) -> tuple[Any, dict[str, Any]] | None:
        """A trial that `tell` takes back, with its choices: such as no process has drawn; None where all were."""
        for _ in range(REPEATS):
            with unwarned():
                trial, choices = self._drawn(space)
                if not self._is_repeated(trial, choices):
                    trial.set_user_attr(PROCESS, [socket.gethostname(), os.getpid()])
                    return trial, choices
                self._repeat(trial, choices)
        left = space.without([item.params for item in self._trials()])
        if not left:
            return None
        self.enqueue(left[:1])
        return self.ask(space)

    def _drawn(self, space: Space) -> tuple[Any, dict[str, Any]]:
        trials = self._trials()
        if self.sampler == "grid" and not any(item.state.name == "WAITING" for item in trials):
            left = space.without([item.params for item in trials])
            self.enqueue(left[:1])
        finished = sum(item.state.is_finished() and _reason(item) != INTERRUPTED for item in trials)
        seed = (1_000_003 * self.seed + finished) % 2**32
        samplers = self._optuna.samplers
        self._study.sampler = (
            samplers.TPESampler(seed=seed, n_startup_trials=STARTUP, multivariate=True, group=True)
            if self.sampler == "tpe"
            else samplers.RandomSampler(seed=seed)
        )
        trial = self._study.ask()
        return trial, space.draw(trial)

    def _is_repeated(self, trial: Any, choices: Mapping[str, Any]) -> bool:
        return any(
            item.params == choices and item.number < trial.number and _reason(item) != INTERRUPTED
            for item in self._trials()
        )

    def _repeat(self, trial: Any, choices: Mapping[str, Any]) -> None:
        """Tell what the first one came to: the estimator then looks elsewhere."""
        first = next(item for item in self._trials() if item.params == choices)
        if first.values:
            self._study.tell(trial, first.values)
        else:
            self._study.tell(trial, state=self._optuna.trial.TrialState.FAIL)

    def tell(self, trial: Any, candidate: Candidate) -> None:
        """What a candidate came to; one that could not be made, or was not finished, has no values."""
        state = self._optuna.trial.TrialState
        trial.set_user_attr(RECORD, json.dumps(candidate.as_dict()))
        with unwarned():
            if candidate.values is None:
                self._study.tell(trial, state=state.FAIL)
            else:
                self._study.tell(trial, list(candidate.values))

    def tried(self) -> list[Candidate]:
        """Every candidate that was recorded so far, of all processes, in the order in which they were drawn."""
        records = [item.user_attrs[RECORD] for item in self._trials() if RECORD in item.user_attrs]
        return [Candidate.from_dict(json.loads(record)) for record in records]

    def give_up_dead(self) -> None:
        """Candidates that a process of this machine left behind when it died are drawn again, before any other."""
        left = [item for item in self._trials() if item.state.name == "RUNNING" and _is_dead(item)]
        for item in left:
            record = json.dumps(Candidate(item.number, item.params, reason=INTERRUPTED).as_dict())
            self._study._storage.set_trial_user_attr(item._trial_id, RECORD, record)
            with unwarned():
                self._study.tell(item.number, state=self._optuna.trial.TrialState.FAIL)
        self.enqueue([item.params for item in left if item.params])

    def _trials(self) -> list[Any]:
        with unwarned():
            return self._study.get_trials(deepcopy=False)  # type: ignore[no-any-return]  # Optuna is not there for every check


def _reason(item: Any) -> str:
    return str(json.loads(item.user_attrs.get(RECORD, "{}")).get("reason", ""))


def _is_dead(item: Any) -> bool:
    """Whether the process that works on a trial is one of this machine that is no more."""
    host, process = item.user_attrs.get(PROCESS, (socket.gethostname(), 0))
    if host != socket.gethostname():
        return False
    if not process or process == os.getpid():
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _mend(journal: Path) -> None:
    """Cut off the line that a killed process has not finished: what comes after it would belong to it."""
    if not journal.is_file():
        return
    content = journal.read_bytes()
    if content and not content.endswith(b"\n"):
        with journal.open("r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise InputError(
            "a search needs optuna, which is not installed: pip install 'torch-compress[search]'"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def check_installed() -> None:
    """Refuse before any work where Optuna is missing.

    Raises:
        InputError: names the line that installs it.
    """
    _optuna()
