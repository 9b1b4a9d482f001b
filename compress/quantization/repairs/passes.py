"""The repairs in order, each kept only where it lowers the error at the outputs on samples that it did not see.

rewrite → equalize → place → calibrate → choose ranges → round weights → correct biases → insert → store → check
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import onnx_ir as ir

from compress.quantization.calibrated import Calibrated
from compress.quantization.repairs.bias import shifts_in_sequence
from compress.quantization.repairs.equalization import equalize
from compress.quantization.repairs.judge import Judge, Samples, decibels
from compress.quantization.repairs.levels import Accuracy
from compress.quantization.repairs.rounding import round_weights
from compress.steps import Change

ENOUGH_DB = 33.0  # at the outputs: past it no answer changes that chance would not change, and passes cost time
NARROW = 7  # bits of weights up to which they are rounded with error feedback without being asked for `best`
WORTH = 0.98  # a pass must bring the noise below this share of what it was: less is chance


@dataclass(frozen=True)
class Bench:
    """What repairs work with: samples, the judge, how to calibrate a changed graph."""

    samples: Samples
    judge: Judge
    observe: Callable[[ir.Model], Calibrated]
    accuracy: Accuracy
    threads: int | None = None


@dataclass(frozen=True)
class Repair:
    """One pass: what it does in words, and the function that returns a changed Calibrated, or None for nothing to do."""

    action: str
    run: Callable[[Calibrated, Bench], tuple[Calibrated, list[Change]] | None]


def _equalize(calibrated: Calibrated, bench: Bench) -> tuple[Calibrated, list[Change]] | None:
    graph = calibrated.graph.clone()
    plan = calibrated.planned(graph)
    changes = equalize(graph, plan, bench.samples.batches(), threads=bench.threads)
    return (bench.observe(graph), changes) if changes else None


def _round(calibrated: Calibrated, bench: Bench) -> tuple[Calibrated, list[Change]] | None:
    if not bench.accuracy.round_bytes and calibrated.weights.narrowest > NARROW:
        return None
    weights, scales = round_weights(calibrated, bench.samples, threads=bench.threads)
    if not weights:
        return None
    fixed = replace(calibrated.weights, fixed={**calibrated.weights.fixed, **scales})
    return replace(calibrated, weights=fixed, rounded={**calibrated.rounded, **weights}), []


def _bias(calibrated: Calibrated, bench: Bench) -> tuple[Calibrated, list[Change]] | None:
    found = shifts_in_sequence(calibrated, bench.samples, threads=bench.threads)
    if not found:
        return None
    shifts = {**calibrated.shifts, **{name: calibrated.shifts.get(name, 0) + shift for name, shift in found.items()}}
    return replace(calibrated, shifts=shifts), []


REPAIRS: Mapping[str, Repair] = {
    "equalize": Repair("channels brought to one size and centre", _equalize),
    "round": Repair("weights rounded with error feedback", _round),
    "bias": Repair("biases corrected in sequence", _bias),
}


def repair(calibrated: Calibrated, bench: Bench) -> tuple[Calibrated, tuple[Change, ...]]:
    """Run the passes that `bench.accuracy` names; return the best found and one change for each pass, kept or not."""
    end = time.monotonic() + bench.accuracy.seconds
    noise = bench.judge.noise(calibrated.quantize(tables=False).model)
    changes: list[Change] = []
    if bench.samples.few:
        count = bench.samples.fitting.samples + bench.samples.judging.samples
        changes.append(
            Change("graph", "repairs judged on few samples", f"{count} calibration samples; 32 and more tell")
        )
    for name, repair_pass in REPAIRS.items():
        if name not in bench.accuracy.passes:
            continue
        start = time.monotonic()
        if decibels(noise) > ENOUGH_DB:
            break
        if start > end:
            changes.append(Change("graph", repair_pass.action, "the time for repairs was up", skipped=True))
            continue
        made = repair_pass.run(calibrated, bench)
        if made is None:
            continue
        candidate, told = made
        found = bench.judge.noise(candidate.quantize(tables=False).model)
        kept = found < WORTH * noise
        reason = f"{decibels(noise):.1f} → {decibels(found):.1f} dB at the outputs on samples held back"
        values = {
            "pass": name,
            "before_db": round(decibels(noise), 2),
            "after_db": round(decibels(found), 2),
            "seconds": round(time.monotonic() - start, 1),
        }
        changes.append(Change("graph", repair_pass.action, reason, skipped=not kept, values=values))
        if kept:
            calibrated, noise = candidate, found
            changes += told
    return calibrated, tuple(changes)
