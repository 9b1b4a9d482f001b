"""Figures for each layer: time, quantization error, zeros, channels, histograms of the worst."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from compress.batches import Batch, example_batch, resized_batch
from compress.graph.constants import constant_array
from compress.onnx_files import give_back, give_back_all, read_onnx
from compress.pipeline.layer_noise import layer_noise
from compress.runtimes.onnxruntime import Session
from compress.steps import Step

RUNS = 15  # of the profiled session; the median of each node counts
SECONDS = 3.0  # after which no further run is made
BINS = 64
ANOTHER = 0.3  # weights that differ by more are no rounded ones: the baseline is another network
WORST = 2  # layers whose weights and activations are drawn


def layer_details(
    shipped: Path,
    baseline: Path | None,
    inputs: Batch,
    steps: Sequence[Step] = (),
    *,
    samples: Iterable[Any] | None = None,
    threads: int | None = None,
    classes: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Look inside the file that ships: `layers` (figures by layer), `histograms`, `classes`; plain JSON values.

    `baseline` is the same network in float, `samples` batches to compare the two on (default: `inputs`).
    A figure that cannot be had (an operator that will not be profiled, no baseline) is left out, never guessed.
    """
    inputs = example_batch(inputs)
    details: dict[str, Any] = {"layers": [], "histograms": []}
    if classes:
        details["classes"] = list(classes)
    rows: list[dict[str, Any]] = []
    with contextlib.suppress(Exception):  # the report must not fail for want of a bar
        rows += node_times(shipped, inputs, threads)
    rows += channel_rows(steps) + sensitivity_rows(steps)
    with contextlib.suppress(Exception):
        graph = read_onnx(shipped)
        source = read_onnx(baseline) if baseline is not None else None
        zeros, errors = weight_rows(graph, source)
        rows += zeros
        if baseline is not None and source is not None:
            if errors and float(np.median(list(errors.values()))) > ANOTHER:
                return {**details, "layers": rows}
            rows += [{"name": name, "error": error} for name, error in errors.items()]
            details["histograms"] = worst_histograms(errors, graph, source, baseline, inputs)
            give_back_all(source)
            rows += noise_rows(shipped, baseline, samples if samples is not None else [inputs], threads)
    details["layers"] = rows
    return details


def node_times(path: Path, inputs: Batch, threads: int | None) -> list[dict[str, Any]]:
    """Median microseconds of each operator that the runtime really executes, one sample."""
    session = Session(path, threads=threads, profile=True)
    fed = resized_batch(inputs, session.fixed_batch or 1)
    end = time.monotonic() + SECONDS
    for count in range(RUNS):
        session.run(fed)
        if count and time.monotonic() > end:
            break
    return [
        {
            "name": re.sub(r"_(token_\d+|nchwc)$", "", row["node"]),
            "operator": row["op_type"],
            "microseconds": row["microseconds"],
        }
        for row in session.profile()
    ]


def channel_rows(steps: Sequence[Step]) -> list[dict[str, Any]]:
    """Channels before and after, from the changes of pruning."""
    found = []
    for step in steps:
        for change in step.changes:
            before, after = change.values.get("before"), change.values.get("after")
            if isinstance(before, int) and isinstance(after, int):
                found.append({"name": change.layer, "channels_before": before, "channels_after": after})
    return found


def sensitivity_rows(steps: Sequence[Step]) -> list[dict[str, Any]]:
    """The error that each layer alone makes at the network's output, where a budget had them measured."""
    return [
        {"name": change.values.get("node", change.layer), "sensitivity": change.values["sensitivity"]}
        for step in steps
        for change in step.changes
        if isinstance(change.values.get("sensitivity"), float)
    ]


def noise_rows(shipped: Path, source: Path, samples: Iterable[Any], threads: int | None) -> list[dict[str, Any]]:
    """The error that int8 has made up to each layer's output."""
    found = layer_noise(shipped, source, samples, threads=threads)
    return [{"name": name, "noise": value} for name, value in found.items()]


def quantized_weights(graph: ir.Model) -> Iterator[tuple[str, np.ndarray]]:
    """(name, real values) of each constant that passes through DequantizeLinear, one at a time in memory."""
    for node in graph.graph:
        if node.op_type != "DequantizeLinear" or constant_array(node.inputs[0]) is None:
            continue
        arrays = [array for value in node.inputs if (array := constant_array(value)) is not None]
        if len(arrays) < 2 or arrays[0].ndim < 2:
            continue
        stored, scale = arrays[0], arrays[1]
        zero = arrays[2] if len(arrays) > 2 else np.zeros_like(scale, dtype=np.int32)
        if scale.ndim == 1 and scale.size > 1:
            shape = [1] * stored.ndim
            shape[node.attributes.get_int("axis", 1)] = scale.size
            scale, zero = scale.reshape(shape), zero.reshape(shape)
        real = (stored.astype(np.float32) - zero.astype(np.float32)) * scale
        weight = node.inputs[0]
        name = (node.name or (weight.name if weight is not None else "") or "").removesuffix("/DQ")
        yield name, real


def weight_rows(graph: ir.Model, source: ir.Model | None) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Zeros among the weights of each layer, quantized or not; the error of each quantized one by name.

    The error is ‖w − ŵ‖ / ‖w‖, for weights that the baseline `source` holds under the same name and shape.
    """
    rows: list[dict[str, Any]] = []
    errors = {}
    for name, real in quantized_weights(graph):
        rows.append({"name": name, "sparsity": float((real == 0).mean())})
        original = None if source is None else _original(source, name)
        if original is not None and original.shape == real.shape:
            errors[name] = float(np.linalg.norm(original - real) / max(float(np.linalg.norm(original)), 1e-12))
            give_back(source.graph.initializers[name].const_value)  # type: ignore[union-attr]  # a graph: it has initializers
    for value in graph.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and len(tensor.shape) >= 2 and tensor.dtype == ir.DataType.FLOAT:
            rows.append({"name": value.name, "sparsity": float((tensor.numpy() == 0).mean())})
            give_back(tensor)
    return rows, errors


def _original(source: ir.Model, name: str) -> np.ndarray | None:
    value = source.graph.initializers.get(name)
    return None if value is None or value.const_value is None else value.const_value.numpy()


def worst_histograms(
    errors: Mapping[str, float],
    graph: ir.Model,
    source: ir.Model,
    baseline: Path,
    inputs: Batch,
) -> list[dict[str, Any]]:
    """Weights and input activations of the layers with the largest weight error."""
    found: list[dict[str, Any]] = []
    for name in sorted(errors, key=lambda name: -errors[name])[:WORST]:
        original = _original(source, name)
        assert original is not None
        found.append(_histogram(name, f"float weights; error {100 * errors[name]:.2f} %", original, ()))
        user = next(iter(source.graph.initializers[name].uses()), None)
        activation = user.node.inputs[0] if user is not None else None
        if activation is None or activation.name is None:
            continue
        names = [value.name or "" for value in source.graph.inputs]
        if activation.name in names:
            values = inputs.bound(names, whose=str(baseline))[activation.name].detach().numpy()
        else:
            (values,) = Session(baseline, outputs=[activation.name]).run(inputs)
        found.append(
            _histogram(activation.name, f"activations into {name}", values, activation_range(graph, activation.name))
        )
    return found


def activation_range(graph: ir.Model, name: str) -> tuple[float, ...]:
    """The interval that the quantized form of this tensor can express; empty where it is not quantized."""
    for node in graph.graph:
        if node.op_type != "QuantizeLinear" or node.inputs[0] is None or node.inputs[0].name != name:
            continue
        scale, zero = (node.inputs[i].const_value.numpy() for i in (1, 2))  # type: ignore[union-attr]  # quantized codes have both
        limits = np.iinfo(zero.dtype)
        return tuple(float((edge - int(zero)) * float(scale)) for edge in (limits.min, limits.max))
    return ()


def _histogram(name: str, what: str, values: np.ndarray, marks: Sequence[float]) -> dict[str, Any]:
    low, high = float(values.min()), float(values.max())
    low, high = min([low, *marks]), max([high, *marks])
    counts, _ = np.histogram(values, bins=BINS, range=(low, high) if high > low else (low, low + 1))
    return {"name": name, "what": what, "counts": counts.tolist(), "low": low, "high": high, "marks": list(marks)}
