"""What is reported is what runs: a quantized graph held against the one that ONNX Runtime makes of it at load.

The runtime fuses quantize/dequantize pairs into integer kernels, or does not; it may also quantize what the file leaves
in float. Its own optimized graph is read back, and every change that says otherwise is corrected.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from compress.batches import Batch, read_batch
from compress.counting import counted
from compress.decibels import decibels
from compress.errors import CompressError
from compress.quantization.calibration import all_rows
from compress.quantization.divergence import first_divergence
from compress.quantization.kernels import HEAVY, MOVING, STORED
from compress.runtimes.onnxruntime import VERSION, Executed, Session, executed_operators, runs_in_integers
from compress.runtimes.runtime import DEFAULT, INTEGERS, Runtime, find_runtime
from compress.steps import Change, Step

IN_INT8 = "runs in int8"
SAMPLES = 8  # on which the optimized graph is set beside the one that is executed as written
VALUES = 128  # of the outputs at least: a ratio of two errors of sixteen logits is chance (MiniLM: 3.8 dB on 8 samples)
CHANGED_DB = 3.0  # rounding moves the error of a whole network by less (measured: 0.2 dB where nothing is wrong)


def as_executed(step: Step, plain: ir.Model, batches: Iterable[Any] | None = None, *, runtime: str = DEFAULT) -> Step:
    """Return `step` with each change as its runtime really runs it, and notes about what it runs otherwise.

    Where the runtime's optimizations change the outputs beyond rounding, that is a fault of the step, with the node.

    Args:
        plain: the same network in float; the outputs of both forms of the quantized one are set beside its outputs.
        batches: samples to compare on; None compares the operators alone.
    """
    if runtime != DEFAULT:
        return _as_in(step, runtime, plain, batches)  # a crash of it is the caller's to decide on
    try:
        operators = executed_operators(step.model)
    except CompressError as error:  # no room for a second copy: nothing is claimed of what runs, and no work is lost
        note = f"what ONNX Runtime runs of this file could not be read back ({error})"
        return replace(step, notes=(*step.notes, note))
    checked = _with_changes(step, [_corrected(change, operators) for change in step.changes], "ONNX Runtime")
    faults = _outputs_changed(step.model, plain, batches) if batches is not None else ()
    return replace(checked, faults=(*checked.faults, *faults))


def _with_changes(step: Step, changes: Sequence[Change], runtime: str) -> Step:
    """The step with its changes as they run, and a note for each kind that differs from what the file says."""
    differing = [new for old, new in zip(step.changes, changes) if new is not old]
    return replace(step, changes=tuple(changes), notes=(*step.notes, *_notes(differing, runtime)))


def _as_in(step: Step, name: str, plain: ir.Model, batches: Iterable[Any] | None) -> Step:
    """The same for another runtime, by the precision that it tells of the layers with weights, and by its outputs."""
    runtime = find_runtime(name)
    found = runtime.precisions(step.model)

    def checked(change: Change) -> Change:
        node = str(change.values.get("node"))
        seen = [kind for key, kind in found.items() if key == node or key.startswith(f"{node}/")]
        if change.action != IN_INT8 or change.values.get("op_type") not in HEAVY or not seen or set(seen) & INTEGERS:
            return change
        reason = f"{runtime.title} {runtime.version()} runs it in {seen[0]}"
        return replace(change, action="quantized, computed in float", reason=reason)

    found_so = _with_changes(step, [checked(change) for change in step.changes], runtime.title)
    batch = _first_samples(batches, plain)
    if batch is None:
        return found_so
    faults, notes = _outputs_elsewhere(step.model, plain, batch, runtime)
    return replace(found_so, faults=(*found_so.faults, *faults), notes=(*found_so.notes, *notes))


def _corrected(change: Change, operators: Mapping[str, Executed]) -> Change:
    found = operators.get(str(change.values.get("node")))
    if found is None or change.values.get("op_type") in MOVING:
        return change
    operator, integer = found.operator, runs_in_integers(found.operator)
    if change.action == IN_INT8 and not change.skipped and not integer:
        reason = f"ONNX Runtime {VERSION} has no integer kernel for this form and runs it in float"
        return replace(change, action="quantized, computed in float", reason=reason)
    if change.skipped and integer and change.values.get("op_type") is not None:
        reason = f"ONNX Runtime {VERSION} quantizes it when it loads the file ({operator})"
        return replace(change, action=IN_INT8, reason=reason, skipped=False)
    if change.skipped and found.narrow_weights and change.values.get("op_type") in HEAVY | STORED:
        reason = f"ONNX Runtime {VERSION} quantizes its weights when it loads the file"
        return replace(change, action="weights in int8, computed in float", reason=reason, skipped=False)
    return change


def _notes(differing: list[Change], runtime: str) -> Iterator[str]:
    for ran_as in dict.fromkeys(change.action for change in differing):
        names = [change.layer for change in differing if change.action == ran_as]
        shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
        yield f"{runtime} runs {counted(len(names), 'node')} otherwise than the file says: {ran_as}: {shown}"


def _first_samples(batches: Iterable[Any] | None, graph: ir.Model) -> Batch | None:
    """The first batch, of it as many samples as outputs of this size need to be compared on."""
    sizes = [value.shape for value in graph.graph.outputs if value.shape is not None]
    known = [size for shape in sizes for size in shape[1:]]
    per_sample = math.prod(size for size in known if isinstance(size, int)) if sizes else VALUES
    samples = max(SAMPLES, VALUES // max(1, per_sample))
    return next((read_batch(raw).part(0, samples) for raw in batches or ()), None)


def _outputs_elsewhere(graph: ir.Model, plain: ir.Model, batch: Batch, runtime: Runtime) -> tuple[list[str], list[str]]:
    """Faults: another runtime computes what the file does not say. Notes: it does so where shapes are left free."""
    wanted = _outputs(plain, batch, optimize=True)
    written = _error_db(wanted, _outputs(graph, batch, optimize=False))
    session, who = runtime.open(graph), f"{runtime.title} {runtime.version()}"
    there = _error_db(wanted, all_rows(session, batch))
    figures = f"dB from the float model's, {written:.1f} dB where the file is run as written"
    if written - there >= CHANGED_DB:
        return [
            f"{who} computes something else: its outputs are {there:.1f} {figures}; the result is not to be trusted"
        ], []
    run_free = getattr(session, "run_free", None)  # of a runtime that fixes shapes where it can
    if run_free is None:
        return [], []
    free = _error_db(wanted, run_free(batch))
    if written - free < CHANGED_DB:
        return [], []
    return [], [
        f"{who} answers otherwise where the shapes are left free: outputs {free:.1f} {figures}, and where they are fixed, as "
        "here; deploy it with model.reshape(...), or export with fixed shapes (--dynamic none)"
    ]


def _outputs_changed(graph: ir.Model, plain: ir.Model, batches: Iterable[Any]) -> list[str]:
    """Whether the runtime's optimizations change how far the outputs are from the float network's, and at which node."""
    batch = _first_samples(batches, plain)
    if batch is None:
        return []
    wanted = _outputs(plain, batch, optimize=True)
    optimized, written = (_error_db(wanted, _outputs(graph, batch, optimize=flag)) for flag in (True, False))
    if written - optimized < CHANGED_DB:
        return []
    try:
        found = first_divergence(graph, batch)
    except CompressError:  # a graph that cannot be cut; that its outputs differ is reported all the same
        found = None
    where = f"first at {found.words}" if found is not None else "at no single node: looked into, it runs as written"
    return [
        f"ONNX Runtime {VERSION} changes what this file computes when it optimizes it: its outputs are {optimized:.1f} dB "
        f"from the float model's, {written:.1f} dB where it runs the file as written; {where}; the result is not to be trusted"
    ]


def _outputs(graph: ir.Model, batch: Batch, *, optimize: bool) -> tuple[np.ndarray, ...]:
    return all_rows(Session(graph, optimize=optimize), batch)


def _error_db(wanted: tuple[np.ndarray, ...], found: tuple[np.ndarray, ...]) -> float:
    """Signal over noise of all float outputs together, in dB; 100 where there is no noise, −100 where one is not finite."""
    pairs = [(a.astype(np.float64), b) for a, b in zip(wanted, found) if a.dtype.kind == "f" and a.shape == b.shape]
    signal, noise = sum(float((a**2).sum()) for a, _ in pairs), sum(float(((a - b) ** 2).sum()) for a, b in pairs)
    if math.isfinite(signal) and not math.isfinite(noise):
        return -100.0
    return min(decibels(noise, signal), 100.0) if signal > 0 else 100.0
