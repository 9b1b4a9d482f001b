"""Quantization for the runtime that will run the file: one that is named, or the faster of those installed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from compress.batches import resized_batch
from compress.errors import InputError, nearest
from compress.evaluation.latency import benchmark
from compress.evaluation.runners import Runnable, Target
from compress.onnx_files import save_onnx
from compress.pipeline.inputs import Opened
from compress.pipeline.job import CLOSING_SECONDS, Job
from compress.pipeline.processors import made_elsewhere
from compress.pipeline.quantize_options import QuantizeOptions
from compress.quantization.executed import as_executed
from compress.quantization.profiles import PROFILES
from compress.quantization.sharing import Shared, sharing
from compress.quantization.weights import wants_of
from compress.runtimes.first_try import RuntimeCrashError
from compress.runtimes.runtime import ALIASES, AUTO, DEFAULT, find_runtime, names, others_installed
from compress.steps import Step

# (graph, job, options) → the step of one runtime
Quantize = Callable[[Any, Job, QuantizeOptions], Step]


def check_runtime(runtime: str, float_precision: str = "float32") -> None:
    """Refuse a runtime that is not installed, runs no ONNX files or has no such precision, before anything is loaded.

    Raises:
        InputError: names the line that installs it.
    """
    if runtime == AUTO:
        offering(float_precision)
        return
    found = find_runtime(runtime)
    if not found.reads_graphs:
        raise InputError(f"runtime {found.name} runs no ONNX files; {nearest(runtime, names(graphs_only=True))}")
    found.check()
    found.check_float_precision(float_precision)


def offering(float_precision: str) -> None:
    """Refuse a precision that no installed runtime offers here.

    Raises:
        InputError: none does, with the usual runtime's reason.
    """
    if not any(find_runtime(name).offers(float_precision) for name in (DEFAULT, *others_installed())):
        find_runtime(DEFAULT).check_float_precision(float_precision)


def in_precision(model: Any, runtime: str, float_precision: str) -> Runnable:
    """A file in a runtime, its float layers in that precision where the runtime offers it."""
    return Runnable(model, runtime, float_precision if find_runtime(runtime).offers(float_precision) else "float32")


def quantized_for(
    graph: Any, job: Job, options: QuantizeOptions, quantize: Quantize, scratch: Path
) -> tuple[Step, str]:
    """Quantize for the runtime that `options` names; return the step and the name of the runtime."""
    if options.runtime != AUTO:
        name = ALIASES.get(options.runtime, options.runtime)
        return held_to_runtime(quantize(graph, job, options), graph, job.opened, name), name
    with sharing(name for name in others_installed() if name in PROFILES) as shared:  # both forms from one calibration
        return _fastest(graph, job, options, quantize, scratch, shared)


def _fastest(
    graph: Any, job: Job, options: QuantizeOptions, quantize: Quantize, scratch: Path, shared: Shared
) -> tuple[Step, str]:
    """A form for each runtime that is installed, timed in turns; the fastest and the name of its runtime."""
    others = others_installed()
    plain = held_to_runtime(quantize(graph, job, replace(options, runtime=DEFAULT)), graph, job.opened)
    if not others or options.method != "static" or not job.opened.has_inputs:
        why = "no other runtime is installed" if not others else f"{options.method} makes one file for all of them"
        return replace(plain, notes=(*plain.notes, f"runtime onnxruntime: {why}")), DEFAULT
    made = {DEFAULT: plain}
    crashed: list[str] = []
    for name in others:
        step = quantize(graph, job, replace(options, runtime=name))
        try:
            made[name] = _held(step, graph, job.opened, name)
        except RuntimeCrashError as error:  # the other one is there
            crashed.append(f"{error}; it is left out")
    if len(made) == 1:
        return replace(plain, notes=(*plain.notes, *crashed)), DEFAULT
    times = _timed(made, job, scratch)
    best = min(times, key=lambda name: times[name])
    shown = ", ".join(f"{name} {ms:.3g} ms" for name, ms in times.items())
    note = f"runtime {best}: the faster here of the files made for each ({shown}, one sample, in turns)"
    if shared.taken:
        note += f"; calibrated once, {shared.taken} of {shared.asked} tensors taken over"
    return replace(made[best], notes=(*made[best].notes, *crashed, note)), best


def held_to_runtime(step: Step, graph: Any, opened: Opened, runtime: str = DEFAULT) -> Step:
    """The step as the runtime really runs its graph; outputs are compared where there is data to calibrate with.

    A file for a runtime that is not here says what that runtime is asked to do, which no runtime here can confirm. That a
    runtime crashes on its own file is the step's fault.
    """
    try:
        return _held(step, graph, opened, runtime)
    except RuntimeCrashError as error:
        return replace(step, faults=(*step.faults, str(error)))


def _held(step: Step, graph: Any, opened: Opened, runtime: str) -> Step:
    if wants_of(step.model, "profile"):
        return step
    batches = opened.calibration() if opened.calibration_samples else None
    held = as_executed(step, graph, batches, runtime=runtime)
    if held.faults and made_elsewhere(held.model):  # this processor's kernels say nothing of the one it is made for
        return replace(held, faults=step.faults, notes=(*held.notes, *held.faults))
    return held


def _timed(made: dict[str, Step], job: Job, scratch: Path) -> dict[str, float]:
    """Milliseconds of one sample of each file in its own runtime, in turns."""
    targets = {name: Runnable(save_onnx(step.model, scratch / f"for_{name}.onnx"), name) for name, step in made.items()}
    one = resized_batch(job.opened.inputs, 1)
    rows = benchmark(targets, one, threads=job.settings.threads, rounds=30, max_seconds=CLOSING_SECONDS / 2)
    return {name: row.p50_ms or float("inf") for name, row in rows.items()}


def in_runtime(
    targets: Mapping[str, Any], runtime: str, made: Collection[str], float_precision: str = "float32"
) -> tuple[dict[str, Target], tuple[str, ...]]:
    """Files as `runtime` runs them, then those of `made` in every other runtime; and a line on each that crashes on one.

    A file on which `runtime` crashes is run by ONNX Runtime.
    """
    shown: dict[str, Target] = {}
    crash_notes = []
    for name, path in targets.items():
        crash = crash_of(runtime, path)
        shown[name] = in_precision(path, DEFAULT if crash else runtime, float_precision)
        crash_notes += [f"{crash}; its row is ONNX Runtime's"] if crash else []
    for name in made:
        others, notes = in_others(targets[name], runtime, float_precision)
        crash_notes += notes
        shown |= {f"{name} in {other}": found for other, found in others.items() if found != shown[name]}
    return shown, tuple(crash_notes)


def in_others(path: Path, runtime: str, float_precision: str = "float32") -> tuple[dict[str, Runnable], list[str]]:
    """A file in each runtime beside `runtime` that is installed, by its name; and a line on each that crashes on it."""
    found, notes = {}, []
    for other in others_installed(runtime):
        if crash := crash_of(other, path):
            notes.append(f"{crash}; it has no row")
        else:
            found[other] = in_precision(path, other, float_precision)
    return found, notes


def crash_of(runtime: str, path: Path) -> str:
    """A line where the runtime crashes on the file; nothing where it does not."""
    try:
        find_runtime(runtime).try_first(path)
    except RuntimeCrashError as error:
        return str(error)
    return ""


def settled_runtime(
    name: str, path: Path, opened: Opened, threads: int | None, *, what: str = "the float file"
) -> tuple[str, tuple[str, ...]]:
    """The runtime that is meant, `auto` being the faster of those installed on a file; and what to say of the choice."""
    if name != AUTO:
        return ALIASES.get(name, name), ()
    crashes = {name: crash_of(name, path) for name in others_installed()}
    installed = [DEFAULT, *(name for name, crash in crashes.items() if not crash)]
    targets = {name: Runnable(path, name) for name in installed}
    rows = benchmark(
        targets, resized_batch(opened.inputs, 1), threads=threads, rounds=30, max_seconds=CLOSING_SECONDS / 2
    )
    times = {name: rows[name].p50_ms or float("inf") for name in installed}
    best = min(times, key=times.__getitem__)
    shown = ", ".join(f"{name} {ms:.3g} ms" for name, ms in times.items())
    return best, (
        f"runtime {best}: the faster here of those installed ({shown}, one sample of {what}, in turns)",
        *filter(None, crashes.values()),
    )
