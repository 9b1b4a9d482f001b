"""The cheap judge: how near a candidate's outputs are to the float model's, on calibration samples, without labels."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from compress.batches import Batch, first_batches, joined
from compress.decibels import EQUAL_DB
from compress.errors import CompressError
from compress.evaluation.differences import OutputDifferences
from compress.evaluation.runners import Runnable, open_runner
from compress.pipeline.inputs import Opened

EARLY = 32  # samples that every candidate is judged on
ALL = 256  # samples for those that were not beaten on the first
BATCH = 32


@dataclass(frozen=True)
class Judge:
    """Batches without labels, and the float model's outputs for them; the first batch is the early one."""

    batches: tuple[Batch, ...]
    wanted: tuple[tuple[Tensor, ...], ...]
    reading_s: float  # seconds that one sample takes to be read from the data
    threads: int | None

    @property
    def samples(self) -> int:
        return sum(batch.samples for batch in self.batches)

    def early(self, path: Path, runtime: str) -> float:
        """Decibels on the first batch."""
        return self._decibels(path, runtime, slice(0, 1))[0]

    def whole(self, path: Path, runtime: str) -> tuple[float, float]:
        """Decibels on all batches, and the seconds that one sample took."""
        return self._decibels(path, runtime, slice(0, None))

    def _decibels(self, path: Path, runtime: str, part: slice) -> tuple[float, float]:
        runner = open_runner(Runnable(path, runtime), threads=self.threads)
        differences, seconds = OutputDifferences(), []
        batches = self.batches[part]
        for batch, wanted in zip(batches, self.wanted[part], strict=True):
            start = time.perf_counter()
            outputs = runner(batch)
            seconds.append((time.perf_counter() - start) / batch.samples)
            differences.add(outputs, wanted)
        # The median: other work on the machine, and what a session does once, make single batches slow.
        return worst(differences), statistics.median(seconds)


def worst(differences: OutputDifferences) -> float:
    """Signal to noise of the output that moved most, in decibels; `EQUAL_DB` at most.

    Raises:
        CompressError: no output keeps its shape.
    """
    found = differences.found(())
    if not found:
        raise CompressError("no output has the shape of the float model's")
    return min(EQUAL_DB if item.snr_db is None else max(-EQUAL_DB, min(EQUAL_DB, item.snr_db)) for item in found)


def judge_of(opened: Opened, float_file: Path, *, threads: int | None) -> Judge:
    """A judge on training samples that calibrate nothing where there are such, else on those that do.

    Without data, on the example inputs, which tell little.
    """
    start = time.perf_counter()
    if opened.calibration_samples is None:
        found = [replace(opened.inputs, target=None)]
    else:
        data = opened.data
        trains = data is not None and data.train is not None
        loader = opened.loader("train") if trains else opened.calibration()
        found = [replace(batch, target=None) for batch in first_batches(loader, ALL)]
    whole = joined(found) if len(found) > 1 else found[0]
    whole = whole.part(0, ALL)
    batches = tuple(whole.part(at, at + BATCH) for at in range(0, whole.samples, BATCH))
    reading_s = (time.perf_counter() - start) / max(1, whole.samples)
    runner = open_runner(float_file, threads=threads)
    wanted = tuple(tuple(value.clone() for value in runner(batch)) for batch in batches)
    return Judge(batches, wanted, reading_s, threads)
