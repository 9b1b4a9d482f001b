"""What every repair is, and what it works with."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from compress.quantization.calibrated import Calibrated
from compress.quantization.repairs.judge import Judge, Samples
from compress.quantization.repairs.levels import Accuracy
from compress.steps import Change
from compress.tables import at


@dataclass(frozen=True)
class Bench:
    """What repairs work with: samples, the judge, how to calibrate a changed graph."""

    samples: Samples
    judge: Judge
    observe: Callable[[ir.Model], Calibrated]
    accuracy: Accuracy
    threads: int | None = None
    end: float = math.inf  # of `time.monotonic`: when the time for repairs is up

    def noise(self, calibrated: Calibrated) -> float:
        """At the outputs of the graph that would ship, on samples held back."""
        return self.judge.noise(calibrated.quantize(tables=False).model)


@dataclass(frozen=True)
class Repair:
    """One pass: what it does in words, and the function that returns a changed Calibrated, or None for nothing to do."""

    action: str  # one line, for the report too
    run: (
        Callable[[Calibrated, Bench], tuple[Calibrated, list[Change]] | None] | str
    )  # or its place, "package.module:name"
    wide: bool = False  # judged with weights of eight bits: it mends activations, whose error narrow weights would hide

    def on(self, calibrated: Calibrated, bench: Bench) -> tuple[Calibrated, list[Change]] | None:
        """The changed network with what was done, or None where there is nothing to do."""
        found: tuple[Calibrated, list[Change]] | None = at(self.run)(calibrated, bench)
        return found
