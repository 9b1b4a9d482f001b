"""A job: what was opened, how it runs, where it writes, what it is held to, how it is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from compress.evaluation.runners import Target
from compress.measures.opening import Measures
from compress.pipeline.gates import Gates
from compress.pipeline.inputs import Opened, Settings
from compress.pipeline.outputs import Output
from compress.steps import Step

CLOSING_SECONDS = 20.0  # what timing may cost at the end of a command


@dataclass(frozen=True)
class Timing:
    """How models are timed. `max_seconds` None: every round, however long it takes."""

    rounds: int = 50
    batch: int = 1
    memory: bool = False  # also the peak memory of each file, in a process of its own
    max_seconds: float | None = CLOSING_SECONDS


@dataclass(frozen=True)
class Job:
    """Everything that a verb hands down. `limits` and `measures` are tried on the float model before any work starts."""

    opened: Opened
    settings: Settings = field(default_factory=Settings)
    output: Output | None = None
    limits: Gates = field(default_factory=Gates)
    measures: Measures = field(default_factory=Measures)
    timing: Timing | None = field(default_factory=Timing)  # None: nothing is timed


@dataclass(frozen=True)
class Delivery:
    """What a job made: the models to measure (the first is the baseline unless named), and how it came about.

    `shipped` is the ONNX file that is delivered, whose layers the page looks into beside those of `source`, the same
    network in float (default: the baseline). `gated` names the rows that are held to the limits (default: all but the
    baseline). Rows of files in `scratch`, a folder that goes when the job ends, have no path.
    """

    targets: Mapping[str, Target]
    title: str
    steps: Sequence[Step] = ()
    notes: Sequence[str] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    baseline: str | None = None
    shipped: Path | None = None
    source: Path | None = None
    gated: Sequence[str] | None = None
    scratch: Path | None = None
