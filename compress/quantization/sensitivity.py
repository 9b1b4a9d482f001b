"""Which layer did it? The error that each layer alone makes at the output (`layer_errors.py`), from a model as it comes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

import onnx_ir as ir
from torch import nn

from compress.batches import first_samples
from compress.given import batches_of
from compress.options import spelled_out
from compress.quantization.apart import times_saved
from compress.quantization.layer_errors import LayerError, rank_layers
from compress.quantization.options import StaticFields, StaticOptions
from compress.quantization.static import calibrate_static


def sensitivity(
    model: nn.Module | ir.Model | str | Path,
    calibration: Iterable[Any],
    options: StaticOptions | None = None,
    *,
    samples: int = 64,
    score: Callable[[ir.Model], float] | None = None,
    timed: bool = False,
    example_inputs: Any = None,
    threads: int | None = None,
    **fields: Unpack[StaticFields],
) -> tuple[LayerError, ...]:
    """Which layer did it? The error that each layer alone makes at the outputs, the worst first; one calibration.

    Each error is split into what the layer's weights make and what its activations make, beside the error at its own output.

    Args:
        options: as for `quantize_static`, or its fields spelled out.
        samples: of the calibration data, that outputs are compared on.
        score: measures one graph, higher is better; each layer then has what is `lost` of it.
        timed: time both forms on this machine, for the milliseconds that each layer gains.
    """
    options = spelled_out(StaticOptions, options, fields, "sensitivity")
    batches = batches_of(calibration)
    calibrated, _ = calibrate_static(model, batches, options, example_inputs=example_inputs, threads=threads)
    found = rank_layers(calibrated, batches, samples=samples, apart=True, score=score, threads=threads)
    if not timed:
        return found
    saved = times_saved(calibrated, first_samples(batches, 1), threads)
    return tuple(replace(item, ms_saved=saved.get(item.node)) for item in found)
