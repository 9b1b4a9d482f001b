"""Latency, throughput and memory, models interleaved round by round so that drift hits all alike."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from compress.batches import Batch, example_batch
from compress.errors import InputError, nearest
from compress.evaluation.memory import peak_memory_bytes
from compress.evaluation.runners import ModuleRunner, Target, model_in, open_runner
from compress.given import named_models
from compress.progress import track
from compress.steps import Measurement
from compress.taking import takes

SHORT_MS = 10.0  # a model faster than this runs several times in a row, so that its own cache state is the usual one
MOST_REPEATS = 10
FEWEST_ROUNDS = 5


@takes()
def benchmark(
    targets: Mapping[str, Target] | Any,
    inputs: Any,
    *,
    baseline: str | None = None,
    rounds: int = 50,
    warmup: int = 5,
    threads: int | None = None,
    max_seconds: float | None = None,
    memory: bool = False,
) -> dict[str, Measurement]:
    """Time models on the same inputs, one after the other in each round, in an order that rotates.

    In a round each model runs once untimed (the others have emptied the caches), then timed, short ones several times.
    `speedup` is the ratio of medians, baseline over this one; the baseline is the first unless named. A file of fixed batch
    is compared by sample: its times are divided by its batch (`extra["fixed_batch"]`) and multiplied by that of `inputs`.

    Args:
        inputs: one batch, in any form of `example_batch` (a tensor, a sequence, a mapping, a shape).
        rounds: how often all take a turn; fewer (never below 5) where `max_seconds` runs out.
        warmup: untimed runs of each model at the start.
        memory: also run each *file* in a process of its own and measure its peak memory.

    Raises:
        InputError: no target, an unknown baseline, or inputs that a model rejects.
    """
    targets = named_models(targets)
    if not targets:
        raise InputError("nothing to benchmark; give at least one model")
    one = example_batch(inputs)
    baseline = baseline if baseline is not None else next(iter(targets))
    if baseline not in targets:
        raise InputError(f"baseline {baseline!r} is not among the models; {nearest(baseline, targets)}")
    with contextlib.ExitStack() as stack:
        opened = {name: _open(target, one, threads, stack) for name, target in targets.items()}
        times = _interleave({name: call for name, (call, _) in opened.items()}, rounds, warmup, max_seconds)
    # A file of fixed batch runs that many samples at once: its times are for as many samples as the others run.
    times = {name: [value * one.samples / opened[name][1] for value in found] for name, found in times.items()}
    base = statistics.median(times[baseline])
    peaks = {name: peak_memory_bytes(target, one, threads) if memory else None for name, target in targets.items()}
    batch = one.samples
    return {
        name: Measurement(
            name=name,
            path=str(model_in(targets[name])) if isinstance(model_in(targets[name]), (str, Path)) else None,
            p50_ms=statistics.median(found),
            p90_ms=quantile(found, 0.90),
            p99_ms=quantile(found, 0.99),
            speedup=base / statistics.median(found),
            throughput=1000 * batch / statistics.median(found),
            peak_memory_bytes=peaks[name],
            extra={"timed_runs": len(found), "batch_size": batch, **_at_once(opened[name][1], batch)},
        )
        for name, found in times.items()
    }


def quantile(values: list[float], fraction: float) -> float:
    """Return a quantile, interpolated between the two nearest values.

    >>> quantile([1.0, 2.0, 3.0], 0.5)
    2.0
    """
    ordered = sorted(values)
    place = fraction * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def _at_once(samples: int, batch: int) -> dict[str, int]:
    return {} if samples == batch else {"fixed_batch": samples}


def _open(
    target: Target, inputs: Batch, threads: int | None, stack: contextlib.ExitStack
) -> tuple[Callable[[], Any], int]:
    """A call that runs the model once, and how many samples it runs."""
    runner = open_runner(target, threads=threads)
    samples = runner.fixed_batch or inputs.samples
    runner(inputs)  # the first run reports a rejected shape in our words
    call = runner.prepare(inputs)
    if not isinstance(runner, ModuleRunner):
        return call, samples
    module = runner

    def run() -> float:
        # Mode, gradients and threads are borrowed outside the clock.
        with module.borrowed():
            start = time.perf_counter()
            call()
            return time.perf_counter() - start

    return run, samples


def _timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    own = call()
    elapsed = time.perf_counter() - start
    return 1000 * (own if isinstance(own, float) else elapsed)


def _interleave(
    calls: Mapping[str, Callable[[], Any]], rounds: int, warmup: int, max_seconds: float | None
) -> dict[str, list[float]]:
    repeats = {}
    for name, call in calls.items():
        warm = [_timed(call) for _ in range(max(warmup, 1))]
        repeats[name] = max(1, min(MOST_REPEATS, round(SHORT_MS / max(min(warm), 1e-3))))
    times: dict[str, list[float]] = {name: [] for name in calls}
    names, start = list(calls), time.perf_counter()
    for index in track(range(rounds), "time", total=rounds, unit="round"):
        for name in names[index % len(names) :] + names[: index % len(names)]:
            calls[name]()
            times[name] += [_timed(calls[name]) for _ in range(repeats[name])]
        if max_seconds is not None and index + 1 >= FEWEST_ROUNDS and time.perf_counter() - start > max_seconds:
            break
    return times
