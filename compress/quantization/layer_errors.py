"""Which layer did it? The error that each layer alone makes at the output.

Every layer is quantized by itself, all others in float, and the outputs are compared with those of
the float graph; for a layer ℓ, over all outputs y of the samples,

    error(ℓ) = Σ (y_ℓ − y)² / Σ y²            sqnr_db = −10 · log10(error)

Errors of single layers nearly add up, so the ranking also says which layers to leave in float.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from compress.batches import Batch, first_samples
from compress.decibels import decibels
from compress.graph.naming import layer_of
from compress.progress import track
from compress.quantization.apart import own_noise, take_apart
from compress.quantization.calibrated import Calibrated
from compress.quantization.calibration import all_rows
from compress.runtimes.onnxruntime import Session
from compress.steps import Change


@dataclass(frozen=True)
class LayerError:
    """What quantizing one layer alone does to the outputs."""

    node: str
    layer: str
    op_type: str
    error: float  # noise power over signal power
    agreement: float  # fraction of samples with the same largest output
    own: float | None = None  # as `error`, at the layer's own output
    weights: float | None = None  # as `error`, with its weights alone in int8
    activations: float | None = None  # as `error`, with its inputs and its output alone in int8
    bytes_saved: int | None = None
    lost: float | None = None  # of the score that the caller measures
    ms_saved: float | None = None  # of one sample; less than nothing where int8 is slower

    @property
    def sqnr_db(self) -> float:
        return decibels(self.error)

    def as_change(self) -> Change:
        values = {"node": self.node, "sensitivity": self.error, "sqnr_db": self.sqnr_db, "agreement": self.agreement}
        return Change(self.layer, "measured alone in int8", values=values)


def rank_layers(
    calibrated: Calibrated,
    batches: Iterable[Any],
    *,
    samples: int = 64,
    layers: Sequence[str] | None = None,
    apart: bool = False,
    score: Callable[[ir.Model], float] | None = None,
    threads: int | None = None,
) -> tuple[LayerError, ...]:
    """Return one LayerError for each layer of the plan (or each of `layers`, by node name), the worst first.

    Args:
        calibrated: from `calibrate_static`.
        batches: data to compare outputs on; its first `samples` samples are used.
        apart: look at weights, activations and the layer's own output too, which takes three times as long.
        score: as for `sensitivity`.

    Raises:
        DataError: no samples.
    """
    inputs = first_samples(batches, samples)
    expected = _outputs(calibrated.graph, inputs, threads)
    nodes = {str(node.name): node for node in calibrated.graph.graph}
    before = score(calibrated.graph) if score is not None else 0.0
    found = []
    for name in track(list(calibrated.layers if layers is None else layers), "sensitivity", unit="layer"):
        parts = take_apart(calibrated, name) if apart else None
        alone = parts.whole if parts is not None else calibrated.quantize(only=[name]).model
        error, agreement = compare_outputs(expected, _outputs(alone, inputs, threads))
        item = LayerError(name, layer_of(nodes[name]), nodes[name].op_type, error, agreement)
        if parts is not None:
            split: dict[str, Any] = {
                key: compare_outputs(expected, _outputs(graph, inputs, threads))[0]
                for key, graph in (("weights", parts.weights), ("activations", parts.activations))
                if graph is not None
            }
            own = own_noise(calibrated, name, alone, inputs, threads)
            item = replace(item, own=own, bytes_saved=parts.bytes_saved, **split)
        found.append(item if score is None else replace(item, lost=before - score(alone)))
    return tuple(sorted(found, key=lambda item: -item.error))


def compare_outputs(expected: Sequence[np.ndarray], got: Sequence[np.ndarray]) -> tuple[float, float]:
    """(noise power over signal power, fraction of samples whose largest first output agrees)."""
    noise = sum(float(np.square(a.astype(np.float64) - b).sum()) for a, b in zip(expected, got))
    signal = sum(float(np.square(a.astype(np.float64)).sum()) for a in expected)
    first, second = (value.reshape(len(value), -1).argmax(1) for value in (expected[0], got[0]))
    return noise / max(signal, 1e-30), float(np.mean(first == second))


def _outputs(graph: ir.Model, inputs: Batch, threads: int | None) -> tuple[np.ndarray, ...]:
    session = Session(graph, threads=threads)
    return all_rows(session, inputs)
