"""Limits that no candidate could keep to, found before the search."""

from __future__ import annotations

from compress.batches import resized_batch
from compress.errors import InputError
from compress.evaluation.latency import benchmark
from compress.evaluation.size import size_bytes
from compress.pipeline.search.session import Session
from compress.reporting import table

LEAST_BYTES = 1 / 40  # of the float file: four bits a weight, and most of the channels gone
FASTEST = 50.0  # times faster than the float file


def check_limits(session: Session) -> None:
    """Refuse limits that exclude each other, or everything that could be tried.

    Raises:
        InputError: the limit, and what can be had.
    """
    limits = session.job.limits
    path = session.float_file
    least = size_bytes(path) * LEAST_BYTES
    if limits.max_size is not None and limits.max_size < least:
        raise InputError(
            f"--max-size {table.size(limits.max_size)} excludes everything: the float file has {table.size(size_bytes(path))}, "
            f"and no candidate is smaller than about {table.size(least)}"
        )
    if limits.max_latency is None:
        return
    inputs = session.opened.inputs
    one = inputs if session.opened.declared else resized_batch(inputs, session.recipe.evaluate.batch)
    threads = session.job.settings.threads
    p50 = benchmark({"float": path}, one, rounds=5, threads=threads, max_seconds=2.0)["float"].p50_ms or 0.0
    if limits.max_latency < p50 / FASTEST:
        raise InputError(
            f"--max-latency {limits.max_latency:g} ms excludes everything: the float file takes {p50:.3g} ms here, and no "
            f"candidate is {FASTEST:g} times as fast"
        )
    if limits.require_speedup is not None and limits.require_speedup > FASTEST:
        raise InputError(f"--require-speedup {limits.require_speedup:g} excludes everything; no candidate is so fast")
