"""Which layer did it? The error that each layer alone makes at the output.

Every layer is quantized by itself, all others in float, and the outputs are compared with those of
the float graph; for a layer ℓ, over all outputs y of the samples,

    error(ℓ) = Σ (y_ℓ − y)² / Σ y²            sqnr_db = −10 · log10(error)

Errors of single layers nearly add up, so the ranking also says which layers to leave in float.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from torch import nn

from compress.batches import Batch, first_batches, joined
from compress.errors import DataError
from compress.given import batches_of
from compress.graph.naming import layer_of
from compress.graph.runtime import Session
from compress.options import spelled_out
from compress.progress import track
from compress.quantization.calibrated import Calibrated
from compress.quantization.calibration import all_rows
from compress.quantization.options import StaticOptions
from compress.steps import Change


@dataclass(frozen=True)
class LayerError:
    """What quantizing one layer alone does to the outputs."""

    node: str
    layer: str
    op_type: str
    error: float  # noise power over signal power
    agreement: float  # fraction of samples with the same largest output

    @property
    def sqnr_db(self) -> float:
        return -10 * math.log10(max(self.error, 1e-30))

    def as_change(self) -> Change:
        values = {"node": self.node, "sensitivity": self.error, "sqnr_db": self.sqnr_db, "agreement": self.agreement}
        return Change(self.layer, "measured alone in int8", values=values)


def sensitivity(
    model: nn.Module | ir.Model | str | Path,
    calibration: Iterable[Any],
    options: StaticOptions | None = None,
    *,
    samples: int = 64,
    example_inputs: Any = None,
    threads: int | None = None,
    **fields: Any,
) -> tuple[LayerError, ...]:
    """Which layer did it? The error that each layer alone makes at the outputs, the worst first; one calibration.

    Args:
        options: as for `quantize_static`, or its fields spelled out.
        samples: of the calibration data, that outputs are compared on.
    """
    from compress.quantization.static import calibrate_static

    options = spelled_out(StaticOptions, options, fields, "sensitivity")
    batches = batches_of(calibration)
    calibrated, _ = calibrate_static(model, batches, options, example_inputs=example_inputs, threads=threads)
    return rank_layers(calibrated, batches, samples=samples, threads=threads)


def rank_layers(
    calibrated: Calibrated,
    batches: Iterable[Any],
    *,
    samples: int = 64,
    layers: Sequence[str] | None = None,
    threads: int | None = None,
) -> tuple[LayerError, ...]:
    """Return one LayerError for each layer of the plan (or each of `layers`, by node name), the worst first.

    Args:
        calibrated: from `calibrate_static`.
        batches: data to compare outputs on; its first `samples` samples are used.

    Raises:
        DataError: no samples.
    """
    inputs = _first(batches, samples)
    expected = _outputs(calibrated.graph, inputs, threads)
    nodes = {str(node.name): node for node in calibrated.graph.graph}
    found = []
    for name in track(list(calibrated.layers if layers is None else layers), "sensitivity", unit="layer"):
        got = _outputs(calibrated.quantize(only=[name]).model, inputs, threads)
        error, agreement = compare_outputs(expected, got)
        found.append(LayerError(name, layer_of(nodes[name]), nodes[name].op_type, error, agreement))
    return tuple(sorted(found, key=lambda item: -item.error))


def compare_outputs(expected: Sequence[np.ndarray], got: Sequence[np.ndarray]) -> tuple[float, float]:
    """(noise power over signal power, fraction of samples whose largest first output agrees)."""
    noise = sum(float(np.square(a.astype(np.float64) - b).sum()) for a, b in zip(expected, got))
    signal = sum(float(np.square(a.astype(np.float64)).sum()) for a in expected)
    first, second = (value.reshape(len(value), -1).argmax(1) for value in (expected[0], got[0]))
    return noise / max(signal, 1e-30), float(np.mean(first == second))


def _first(batches: Iterable[Any], samples: int) -> Batch:
    taken = list(first_batches(batches, samples))
    if not taken:
        raise DataError("the data is empty; give at least one batch")
    return joined(taken).part(0, samples)


def _outputs(graph: ir.Model, inputs: Batch, threads: int | None) -> tuple[np.ndarray, ...]:
    session = Session(graph, threads=threads)
    return all_rows(session, inputs)
