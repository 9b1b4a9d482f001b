"""Optuna, the one door to it: a study in a journal file, asked for candidates and told what they came to.

Watanabe, "Tree-structured Parzen estimator" (arXiv 2304.11127) describes the sampler. Several processes, on several
machines with one folder, share a study through its journal. Optuna's own pruners serve studies of one objective only
(`Trial.report` refuses several), so a candidate that falls out early is told as such by the search's judges.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compress.errors import InputError

JOURNAL = "study.journal"
NAME = "compress"
RECORD = "record"


@dataclass(frozen=True)
class Tried:
    """One candidate of the study: what was drawn for it, and what is known of it."""

    number: int
    parameters: Mapping[str, Any]
    record: Mapping[str, Any] = field(default_factory=dict)
    running: bool = False


class Study:
    """A study of three objectives: quality (higher is better), bytes and cost (lower is better).

    What the sampler is told must repeat exactly from run to run, so no measured time is among it. It is made anew for
    each candidate from the seed and the candidate's number: a study that was interrupted goes on as if it had not been.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        optuna = _optuna()
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        folder.mkdir(parents=True, exist_ok=True)
        self.seed, self._optuna = seed, optuna
        with _quiet():
            storage = JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
            self._study = optuna.create_study(
                study_name=NAME,
                storage=storage,
                directions=["maximize", "minimize", "minimize"],
                load_if_exists=True,
            )

    @staticmethod
    def exists(folder: Path) -> bool:
        return (folder / JOURNAL).is_file()

    def get(self, key: str) -> Any:
        return self._study.user_attrs.get(key)

    def set(self, key: str, value: Any) -> None:
        self._study.set_user_attr(key, value)

    def enqueue(self, candidates: Sequence[Mapping[str, Any]]) -> None:
        """Try these first, in this order."""
        with _quiet():
            for parameters in candidates:
                self._study.enqueue_trial(dict(parameters), skip_if_exists=True)

    def ask(self) -> Any:
        """A trial: give it to `Space.draw`, then back to `tell`."""
        with _quiet():
            number = len(self._study.get_trials(deepcopy=False))
            # Each draw has a generator of its own: what an interrupted search would have drawn next, a resumed one does.
            self._study.sampler = self._optuna.samplers.TPESampler(
                seed=(1_000_003 * self.seed + number) % 2**32, n_startup_trials=8, multivariate=True, group=True
            )
            return self._study.ask()

    def note(self, trial: Any, record: Mapping[str, Any]) -> None:
        """Keep what is known of a trial by now, for the other processes and for a search that goes on."""
        trial.set_user_attr(RECORD, json.dumps(record))

    def tell(self, trial: Any, values: Sequence[float] | None) -> None:
        """What a candidate came to; None where it could not be made."""
        state = self._optuna.trial.TrialState
        with _quiet():
            if values is None:
                self._study.tell(trial, state=state.FAIL)
            else:
                self._study.tell(trial, list(values))

    def tried(self) -> list[Tried]:
        """Every candidate so far, of all processes, in order."""
        running = self._optuna.trial.TrialState.RUNNING
        return [
            Tried(item.number, dict(item.params), json.loads(item.user_attrs.get(RECORD, "{}")), item.state == running)
            for item in self._study.get_trials(deepcopy=False)
            if item.params
        ]

    def give_up_running(self) -> None:
        """Candidates that a process left behind when it died are no longer at work."""
        for item in self._study.get_trials(deepcopy=False):
            if item.state == self._optuna.trial.TrialState.RUNNING:
                with _quiet():
                    self._study.tell(item.number, state=self._optuna.trial.TrialState.FAIL)


class _quiet:
    """Optuna's experimental-feature warnings are none of the user's business."""

    def __enter__(self) -> None:
        self._catch = warnings.catch_warnings()
        self._catch.__enter__()
        warnings.simplefilter("ignore")

    def __exit__(self, *reason: Any) -> None:
        self._catch.__exit__(*reason)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise InputError(
            "searching needs optuna, which is not installed: pip install 'torch-compress[search]'"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna
