"""The table of repairs in their order, each kept only where it lowers the error. A new one is one file and one line here.

The error is that at the outputs, on samples that the repair did not see.

rewrite → equalize → place → calibrate → choose ranges →
leave layers in float → round weights → choose their widths → correct biases → insert → store → check
"""

from __future__ import annotations

import time
from dataclasses import replace

from compress.decibels import decibels
from compress.onnx_files import file_bytes
from compress.progress import tell
from compress.quantization.calibrated import Calibrated
from compress.quantization.repairs.bench import Bench, Repair
from compress.quantization.repairs.bias import shifts_in_sequence
from compress.quantization.repairs.equalization import equalize
from compress.quantization.repairs.floats import choose_floats
from compress.quantization.repairs.rounding import round_weights
from compress.quantization.repairs.widths import all_wide, fitting, kept_wide, narrow_bytes, rank_widths, widened
from compress.steps import Change

ENOUGH_DB = 33.0  # at the outputs: past it no answer changes that chance would not change, and passes cost time
NODE_BYTES = 16  # by which a width may change the file beside its codes
SHARES = (0.25, 0.5, 1.0)  # of what may be added for them, tried in turn
NARROW = 7  # bits of weights up to which they are rounded with error feedback without being asked for `best`
STOPPED = "the best found until then is saved"
WORTH = 0.98  # a pass must bring the noise below this share of what it was: less is chance


def _equalize(calibrated: Calibrated, bench: Bench) -> tuple[Calibrated, list[Change]] | None:
    graph = calibrated.graph.clone()
    plan = calibrated.planned(graph)
    changes = equalize(graph, plan, bench.samples.batches(), threads=bench.threads)
    return (bench.observe(graph), changes) if changes else None


def _floats(calibrated: Calibrated, bench: Bench) -> tuple[Calibrated, list[Change]] | None:
    # Where a size is asked for, or fewer bits, bytes go to widths of weights, whose noise is most of it then.
    if bench.accuracy.max_bytes is not None or calibrated.weights.narrowest <= NARROW:
        return None
    return choose_floats(calibrated, bench.samples, bench.noise, bench.accuracy, end=bench.end, threads=bench.threads)


def _round(calibrated: Calibrated, bench: Bench) -> tuple[Calibrated, list[Change]] | None:
    if not bench.accuracy.round_bytes and calibrated.weights.narrowest > NARROW:
        return None
    weights, scales = round_weights(calibrated, bench.samples, threads=bench.threads)
    if not weights:
        return None
    fixed = replace(calibrated.weights, fixed={**calibrated.weights.fixed, **scales})
    return replace(calibrated, weights=fixed, rounded={**calibrated.rounded, **weights}), []


def _widths(calibrated: Calibrated, bench: Bench) -> tuple[Calibrated, list[Change]] | None:
    if decibels(bench.noise(calibrated)) >= bench.accuracy.mixed_db:
        return None
    order = rank_widths(calibrated, bench.samples, most=bench.accuracy.samples // 8, threads=bench.threads)
    if not order:
        return None
    most, found, wide = bench.accuracy.wide_share * narrow_bytes(calibrated), calibrated, []
    if bench.accuracy.max_bytes is not None:
        spare = bench.accuracy.max_bytes - file_bytes(calibrated.quantize().model)
        most = max(0.0, spare - NODE_BYTES * len(order))
    for share in SHARES:
        wide = fitting(order, int(share * most))
        found = widened(calibrated, wide)
        if decibels(bench.noise(found)) >= bench.accuracy.mixed_db:
            break
    return replace(found, widths=order), kept_wide(order, wide)


def _bias(calibrated: Calibrated, bench: Bench) -> tuple[Calibrated, list[Change]] | None:
    found = shifts_in_sequence(calibrated, bench.samples, threads=bench.threads)
    if not found:
        return None
    shifts = {**calibrated.shifts, **{name: calibrated.shifts.get(name, 0) + shift for name, shift in found.items()}}
    return replace(calibrated, shifts=shifts), []


# A new repair is one file with a function like those above, and one line here, where it stands in the order.
REPAIRS: dict[str, Repair] = {
    "equalize": Repair("channels brought to one size and centre", _equalize, wide=True),
    "floats": Repair("the layers that lose most left in float", _floats),
    "round": Repair("weights rounded with error feedback", _round),
    "widths": Repair("widths of weights chosen layer by layer", _widths),
    "bias": Repair("biases corrected in sequence", _bias),
}


def repair(calibrated: Calibrated, bench: Bench) -> tuple[Calibrated, tuple[Change, ...]]:
    """Run the passes that `bench.accuracy` names; return the best found and one change for each pass, kept or not."""
    end = time.monotonic() + bench.accuracy.seconds
    bench = replace(bench, end=end)
    noise = bench.noise(calibrated)
    changes: list[Change] = []
    if bench.samples.few:
        count = bench.samples.fitting.samples + bench.samples.judging.samples
        changes.append(
            Change("graph", "repairs judged on few samples", f"{count} calibration samples; 32 and more tell")
        )
    for name, repair_pass in REPAIRS.items():
        if not bench.accuracy.runs(name):
            continue
        start = time.monotonic()
        if decibels(noise) > ENOUGH_DB:
            break
        if start > end:
            changes.append(Change("graph", repair_pass.action, "the time for repairs was up", skipped=True))
            continue
        narrow = repair_pass.wide and calibrated.weights.narrowest <= NARROW
        given = all_wide(calibrated) if narrow else calibrated
        before = bench.noise(given) if narrow else noise
        try:
            made = repair_pass.on(given, bench)
            if made is None:
                continue
            candidate, repaired = made
            found = bench.noise(all_wide(candidate) if narrow else candidate)
        except KeyboardInterrupt:
            if not bench.accuracy.keeps:
                raise
            tell(f"stopped; {STOPPED} (Ctrl-C again leaves without it)")
            changes.append(Change("graph", repair_pass.action, "stopped by Ctrl-C", skipped=True))
            note = f"stopped by Ctrl-C before the end of '{repair_pass.action}': {STOPPED}"
            calibrated = replace(calibrated, notes=(*calibrated.notes, note))
            break
        kept = found < WORTH * before
        changes.append(_outcome(name, (before, found), time.monotonic() - start, kept))
        if kept:
            calibrated = _with_bits_of(candidate, calibrated) if narrow else candidate
            noise = bench.noise(calibrated) if narrow else found
            changes += repaired
    return calibrated, tuple(changes)


def _with_bits_of(candidate: Calibrated, other: Calibrated) -> Calibrated:
    weights = replace(candidate.weights, bits=other.weights.bits, layer_bits=other.weights.layer_bits)
    return replace(candidate, weights=weights)


def _outcome(name: str, noises: tuple[float, float], seconds: float, kept: bool) -> Change:
    """What one pass did to the noise at the outputs."""
    before, after = (decibels(noise) for noise in noises)
    reason = f"{before:.1f} → {after:.1f} dB at the outputs on samples held back"
    values = {"pass": name, "before_db": round(before, 2), "after_db": round(after, 2), "seconds": round(seconds, 1)}
    return Change("graph", REPAIRS[name].action, reason, skipped=not kept, values=values)
