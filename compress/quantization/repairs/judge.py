"""The judge of every repair: the error at the model's outputs, on calibration samples that the repair did not see."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from compress.batches import Batch, first_batches, joined
from compress.decibels import decibels
from compress.errors import DataError
from compress.quantization.calibration import all_rows
from compress.runtimes.onnxruntime import Session

FEWEST = 32  # samples; with fewer, what is held back says little
HELD_BACK = 4  # one sample of so many
MOST = 256  # samples that repairs look at, in all


@dataclass(frozen=True)
class Samples:
    """Calibration samples in memory: those that repairs are fitted on, those that judge them."""

    fitting: Batch
    judging: Batch

    @property
    def few(self) -> bool:
        return self.fitting.samples + self.judging.samples < FEWEST

    def batches(self, size: int = 32) -> list[Batch]:
        """The fitting samples as batches."""
        return [self.fitting.part(first, first + size) for first in range(0, self.fitting.samples, size)]


def take_samples(batches: Iterable[Any], most: int = MOST) -> Samples:
    """The first samples of `batches`; every fourth is held back. With fewer than four, all do both.

    Raises:
        DataError: there are none.
    """
    taken = list(first_batches(batches, most))
    if not taken:
        raise DataError("the calibration data is empty; give at least one batch")
    whole = joined(taken).part(0, most)
    if whole.samples < HELD_BACK:
        return Samples(whole, whole)
    is_back = torch.arange(whole.samples) % HELD_BACK == HELD_BACK - 1
    return Samples(_chosen(whole, ~is_back), _chosen(whole, is_back))


def _chosen(batch: Batch, chosen: Tensor) -> Batch:
    def cut(value: Tensor) -> Tensor:
        return value[chosen] if value.dim() and len(value) == len(chosen) else value

    return batch.map(cut)


class Judge:
    """Compares graphs with the float graph on the samples held back.

    Every output counts alike, whatever its size: the noise of each is taken relative to its own signal.
    """

    def __init__(self, graph: ir.Model, samples: Samples, *, threads: int | None = None) -> None:
        self.samples, self.threads = samples, threads
        self.expected = self._run(graph)

    def noise(self, graph: ir.Model) -> float:
        """Mean over the float outputs of Σ (ŷ − y)² / Σ y²; infinite where the graph gives no finite number."""
        shares = [
            relative_noise(wanted, found)
            for wanted, found in zip(self.expected, self._run(graph))
            if wanted.dtype.kind == "f"
        ]
        total = float(np.mean(shares)) if shares else 0.0
        return total if math.isfinite(total) else math.inf

    def _run(self, graph: ir.Model) -> tuple[np.ndarray, ...]:
        return all_rows(Session(graph, threads=self.threads), self.samples.judging)


def relative_noise(wanted: np.ndarray, found: np.ndarray) -> float:
    """Σ (ŷ − y)² / Σ y² in double precision."""
    signal = float(np.square(wanted.astype(np.float64)).sum())
    return float(np.square(wanted.astype(np.float64) - found).sum()) / max(signal, 1e-30)


def mean_decibels(noises: Sequence[float]) -> float:
    """Signal to noise of the mean noise."""
    return decibels(float(np.mean(noises)))
