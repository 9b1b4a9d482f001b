"""Frozen values handed between stages: what was done to a model, and what was measured on it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_STAYS = re.compile(r"^left in |\bstays\b| kept$|^not ")  # how an action says that a layer stays as it was


@dataclass(frozen=True)
class Change:
    """One thing that a stage did to one layer, or declined to do.

    `action` is a short verb phrase ("fused into conv1", "quantized", "64 → 32 channels");
    `skipped` says that it was *not* done, and `reason` then says why. The action of a layer that stays as it was says so:
    "left in float", "stays float", "64 channels kept", "not fused".
    """

    layer: str
    action: str
    reason: str = ""
    skipped: bool = False
    values: Mapping[str, Any] = field(default_factory=dict)  # plain JSON values only

    @property
    def stays(self) -> bool:
        """Whether the layer stays as it was and `action` says how; any other skipped change was considered and not done.

        A decision by measurement that was not kept ("left in float", slower) says nothing of how the layer ended.
        """
        tried = "before_ms" in self.values or "before_db" in self.values
        return self.skipped and not tried and bool(_STAYS.search(self.action))

    def as_dict(self) -> dict[str, Any]:
        row: dict[str, Any] = {"layer": self.layer, "action": self.action, "skipped": self.skipped}
        if self.reason:
            row["reason"] = self.reason
        if self.values:
            row["values"] = dict(self.values)
        return row


@dataclass(frozen=True)
class Step:
    """The result of a verb: a new model, and the list of what was done, refusals included.

    `model` is a `torch.nn.Module` before the border and an `onnx_ir.Model` after it. The
    model that was handed in is never touched. `notes` are sentences for the user; `faults` those for which the result is
    not good, whatever its figures are.
    """

    name: str
    model: Any
    changes: tuple[Change, ...] = ()
    notes: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()

    @property
    def done(self) -> tuple[Change, ...]:
        return tuple(change for change in self.changes if not change.skipped)

    @property
    def skipped(self) -> tuple[Change, ...]:
        return tuple(change for change in self.changes if change.skipped)


@dataclass(frozen=True)
class Measure:
    """One figure of one model. Fractions are in [0, 1] whatever `unit` they are printed in ("%", or "" for plain numbers).

    `better` says which way is good: "higher" or "lower". The intervals are at 95 %, over samples (images, sentences, never
    pixels or tokens): of the value, and of its difference from the baseline's, paired by sample. None: not known.
    """

    name: str
    unit: str
    better: str
    value: float
    interval: tuple[float, float] | None = None
    change_interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Difference:
    """How far one output of a model is from the baseline's, over all samples; needs no labels.

    `snr_db` is 10·log10(Σ baseline² / Σ (this − baseline)²), None where the two are equal; `largest` is the largest
    absolute difference of one element.
    """

    output: str
    snr_db: float | None
    largest: float


@dataclass(frozen=True)
class Measurement:
    """Figures of one deliverable, each taken from the very file (or module) it names.

    Latencies are milliseconds per run of one batch; accuracies are fractions in [0, 1];
    `None` means "not measured", never zero.
    """

    name: str
    path: str | None = None
    size_bytes: int | None = None  # on disk, external data included
    parameters: int | None = None
    macs: int | None = None  # multiply-accumulates for one sample
    sparsity: float | None = None  # fraction of weight elements that are zero
    p50_ms: float | None = None
    p90_ms: float | None = None
    p99_ms: float | None = None
    speedup: float | None = None  # ratio of medians: baseline p50 / this p50, interleaved
    throughput: float | None = None  # samples per second
    peak_memory_bytes: int | None = None
    top1: float | None = None
    top5: float | None = None
    loss: float | None = None
    metric: float | None = None  # the user's own metric, the first where there are several
    agreement: float | None = None  # fraction of positions with the baseline's class, where outputs are class scores
    samples: int | None = None  # images, sentences, rows: never pixels or tokens
    measures: tuple[Measure, ...] = ()  # the figures of the task and the user's own metrics; the first decides
    differences: tuple[Difference, ...] = ()  # one for each output, beside the baseline's
    extra: Mapping[str, Any] = field(default_factory=dict)
