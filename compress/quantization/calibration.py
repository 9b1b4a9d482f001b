"""Streaming calibration: samples through the float graph, only statistics kept.

A batch is run a few samples at a time, so that what is fetched stays under a budget of bytes
whatever the batch size; each tensor is observed and dropped. Memory therefore depends on the
graph alone, not on the number of samples nor on how they were batched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from compress.batches import Batch, read_batch
from compress.errors import DataError
from compress.progress import track
from compress.quantization.ranges.observer import Observer
from compress.runtimes.onnxruntime import Session
from compress.runtimes.runtime import OpenedModel

FETCH_BYTES = 96 << 20  # of activations held at a time


def calibrate(
    graph: ir.Model,
    tensor_names: Sequence[str],
    batches: Iterable[Any],
    start: Callable[[], Observer],
    *,
    also: tuple[Sequence[str], Callable[[str, np.ndarray], None]] = ((), lambda name, values: None),
    threads: int | None = None,
    description: str = "calibrating",
) -> dict[str, Observer]:
    """Observe tensors of `graph` over every sample of `batches`; return one observer for each name.

    Args:
        tensor_names: tensors of the main graph, float.
        batches: a re-iterable of batches in any form that `read_batch` reads, any batch size.
        start: makes a fresh observer (`Percentile().start`).
        also: further tensors, and a function that is shown them in the same pass.

    Raises:
        DataError: no samples, or a NaN or infinity in an input or a tensor, which is named.
    """
    observers = {name: start() for name in tensor_names}

    others, show = frozenset(also[0]), also[1]

    def look(name: str, values: np.ndarray) -> None:
        if name in observers:
            observers[name].observe(values)
        if name in others:
            show(name, values)

    # A graph whose weights are stored and nothing else has no range; its data are still run, and checked.
    names = (*tensor_names, *also[0]) or tuple(str(value.name) for value in graph.graph.outputs)
    run_streaming(graph, names, batches, look, threads=threads, description=description)
    return observers


def run_streaming(
    graph: ir.Model,
    tensor_names: Sequence[str],
    batches: Iterable[Any],
    look: Callable[[str, np.ndarray], None],
    *,
    threads: int | None = None,
    description: str = "calibrating",
) -> int:
    """Hand every tensor of every sample to `look(name, values)`, a few samples at a time; return the sample count."""
    names = tuple(dict.fromkeys(tensor_names))
    session = Session(graph, outputs=names, threads=threads, arena=False)
    fixed = _fixed_batch(session)
    rows, seen = fixed or 1, 0
    for batch in track(batches, description):
        read = read_batch(batch)
        arrays = tuple(value.detach().cpu().numpy() for value in session.in_order(read))
        for position, array in enumerate(arrays):
            _check_finite(
                session.input_names[position] if position < len(session.input_names) else "", array, seen, "input"
            )
        first, count = 0, read.samples
        while first < count:
            piece = tuple(_piece(array, first, rows, fixed, count) for array in arrays)
            fetched_bytes = 0
            for name, values in zip(names, session.run(*piece)):
                _check_finite(name, values, seen + first, "tensor")
                fetched_bytes += values.nbytes
                look(name, values)
            first += rows
            if not fixed:
                ran = min(rows, count - first + rows)
                rows = max(1, FETCH_BYTES * ran // max(fetched_bytes, 1))
        seen += count
    if seen == 0:
        raise DataError("the calibration data is empty; give at least one batch")
    return seen


def two_samples(batches: Iterable[Any]) -> Batch:
    """The first two samples, with which a module is exported.

    Raises:
        DataError: there is none.
    """
    for batch in batches:
        return read_batch(batch).part(0, 2)
    raise DataError("the calibration data is empty; give at least one batch")


def all_rows(session: OpenedModel, batch: Batch, *, rows: int = 16) -> tuple[np.ndarray, ...]:
    """The outputs for all samples of `batch`, run a few at a time, or as many as a fixed batch takes."""
    rows, count = _fixed_batch(session) or rows, batch.samples
    arrays = [value.detach().cpu().numpy() for value in session.in_order(batch)]
    found = []
    for first in range(0, count, rows):
        size = min(rows, count - first)
        outputs = session.run(*(_piece(array, first, rows, _fixed_batch(session), count) for array in arrays))
        found.append(tuple(value[:size] for value in outputs))
    return tuple(np.concatenate(parts) for parts in zip(*found))


def _fixed_batch(session: OpenedModel) -> int | None:
    """The batch size that the graph insists on; None where it takes any. A later input may have the batch elsewhere."""
    return session.fixed_batch


def _piece(array: np.ndarray, first: int, rows: int, fixed: int | None, count: int) -> np.ndarray:
    if not array.ndim or len(array) != count:  # what all samples share, such as a sampling rate
        return array
    piece = array[first : first + rows]
    if fixed and len(piece) < fixed:  # such a graph takes no rest: fill it up with what the rest holds
        return piece[np.arange(fixed) % len(piece)]
    return piece


def _check_finite(name: str, values: np.ndarray, first: int, what: str) -> None:
    # The sum is one pass without a temporary; only a suspicious one is looked at closely (it may have overflowed).
    if values.dtype.kind != "f" or np.isfinite(values.sum(dtype=np.float32 if values.dtype == np.float16 else None)):
        return
    bad = ~np.isfinite(values)
    if bad.any():
        sample = first + (int(np.argwhere(bad)[0][0]) if values.ndim else 0)
        raise DataError(
            f"{what} {name!r} holds NaN or infinity for calibration sample {sample}; clean the data (or the weights)"
        )
