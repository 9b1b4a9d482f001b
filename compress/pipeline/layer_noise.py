"""The error at each layer's output: the quantized file beside its float form, on a few samples."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from compress.batches import Batch, read_batch, resized_batch
from compress.onnx_files import read_onnx
from compress.runtimes.onnxruntime import Session

SAMPLES = 8
SECONDS = 3.0  # after which no further sample is looked at
# These move values and add no error of their own.
MOVES = {"Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Cast", "Slice", "Split", "Shape"}
QUANTIZERS = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"}


def layer_noise(shipped: Path, source: Path, batches: Iterable[Any], *, threads: int | None = None) -> dict[str, float]:
    """min over a of ‖y − a·ŷ‖ / ‖y‖ for each layer's output y, in the order of the network.

    The factor a is one for the whole tensor: rewrites carry constants (the 1/6 of a hard swish) from one layer into
    the next. The error holds what all layers before have added, so a layer that int8 hurts is where it jumps. Samples
    are fed one by one: only one sample's activations are ever in memory. Empty where nothing is quantized, or where
    the two are not the same network.
    """
    pairs = compared_tensors(read_onnx(shipped), read_onnx(source))
    if not pairs:
        return {}
    quantized = Session(shipped, threads=threads, outputs=[name for _, _, name in pairs])
    plain = Session(source, threads=threads, outputs=[name for _, name, _ in pairs])
    sums = np.zeros((len(pairs), 3))  # ⟨y, y⟩, ⟨ŷ, ŷ⟩, ⟨y, ŷ⟩
    end = time.monotonic() + SECONDS
    for count, inputs in enumerate(_single_samples(batches)):
        if count >= SAMPLES or (count and time.monotonic() > end):
            break
        for place, (y, approximate) in enumerate(zip(_run(plain, inputs), _run(quantized, inputs))):
            if any(padded < size for padded, size in zip(approximate.shape, y.shape)) or approximate.ndim != y.ndim:
                return {}  # not the same network
            if y.dtype.kind == "f":
                approximate = approximate[tuple(slice(size) for size in y.shape)]  # padded channels come last
                first, second = y.ravel().astype(np.float64), approximate.ravel().astype(np.float64)
                sums[place] += first @ first, second @ second, first @ second
    return {
        name: math.sqrt(max(0.0, 1 - both * both / (y * quantized)))
        for (name, _, _), (y, quantized, both) in zip(pairs, sums)
        if y > 0 and quantized > 0
    }


def compared_tensors(quantized: ir.Model, plain: ir.Model) -> list[tuple[str, str, str]]:
    """(node, its output's name in the float graph, what to fetch of the quantized one), in the quantized graph's order.

    A tensor that is quantized is fetched as its readers get it, rounded.
    """
    named = {value.name for node in plain.graph for value in node.outputs}
    if not any(node.op_type in QUANTIZERS for node in quantized.graph):
        return []
    found = []
    for node in quantized.graph:
        output = node.outputs[0]
        if node.op_type in MOVES | QUANTIZERS or output.name not in named or not node.name:
            continue
        found.append((node.name, str(output.name), str(_as_read(output).name)))
    return found


def _as_read(value: ir.Value) -> ir.Value:
    for kind in ("QuantizeLinear", "DequantizeLinear"):
        reader = next((use.node for use in value.uses() if use.node.op_type == kind), None)
        if reader is None:
            return value
        value = reader.outputs[0]
    return value


def _single_samples(batches: Iterable[Any]) -> Iterable[Batch]:
    for batch in batches:
        read = read_batch(batch)
        for index in range(read.samples):
            yield read.part(index, index + 1)


def _run(session: Session, inputs: Batch) -> tuple[np.ndarray, ...]:
    """One sample through a graph, whatever batch it takes; the copies that fill a fixed batch change no ratio."""
    return session.run(resized_batch(inputs, session.fixed_batch or 1))
