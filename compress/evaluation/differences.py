"""How far a model's outputs are from the baseline's: signal-to-noise and largest difference, for each output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from compress.decibels import decibels
from compress.steps import Difference


@dataclass
class Sums:
    """Sums over one output."""

    signal: float = 0.0
    noise: float = 0.0
    largest: float = 0.0


@dataclass
class OutputDifferences:
    """Sums over all batches; an output whose shape differs from the baseline's (a detector that drops boxes) has none."""

    sums: list[Sums] = field(default_factory=list)
    misfits: set[int] = field(default_factory=set)

    def add(self, outputs: Sequence[Tensor], reference: Sequence[Tensor]) -> None:
        """Count one batch of this model and the baseline's; no targets are needed."""
        for index, (mine, theirs) in enumerate(zip(outputs, reference)):
            if index == len(self.sums):
                self.sums.append(Sums())
            if mine.shape != theirs.shape:
                self.misfits.add(index)
            elif mine.numel():
                self._count(self.sums[index], mine.detach().cpu().double(), theirs.detach().cpu().double())

    def _count(self, sums: Sums, mine: Tensor, theirs: Tensor) -> None:
        # Where both are infinite (masked scores) there is no difference.
        error = torch.where(mine == theirs, 0.0, mine - theirs)
        sums.signal += float(torch.where(torch.isfinite(theirs), theirs, 0.0).square().sum())
        sums.noise += float(error.square().sum())
        sums.largest = max(sums.largest, float(error.abs().max()))

    def found(self, names: Sequence[str]) -> tuple[Difference, ...]:
        """One difference for each output that could be compared."""
        return tuple(
            Difference(names[index] if index < len(names) else f"output {index}", _decibels(sums), sums.largest)
            for index, sums in enumerate(self.sums)
            if index not in self.misfits
        )


def _decibels(sums: Sums) -> float | None:
    if sums.noise == 0:
        return None
    return decibels(sums.noise, sums.signal) if sums.signal else float("-inf")
