"""AdaRound: each weight rounded up or down as its layer's output wants it, not to the nearest.

Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization", section 3. With x the layer's
(quantized) input on calibration data and f the layer:

    ŵ = s · clamp(floor(w / s) + h(V), n, p)            h(V) = clamp(1.2 · σ(V) - 0.1, 0, 1)
    minimize over V:  mean (f(w, x) - f(ŵ, x))² + λ Σ (1 - |2 h(V) - 1|^β),    β from 20 down to 2

At the end h is 0 or 1. Layers are taken in order, each on inputs that the layers before it, already rounded, give it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from compress.batches import first_samples
from compress.errors import QuantizationError
from compress.given import model_of
from compress.graph.editing import consumers
from compress.graph.naming import layer_of
from compress.graph.operator_node import OperatorNode, Run
from compress.graph.operators import OPERATORS
from compress.progress import track
from compress.quantization.fake_quantize import WeightFakeQuantize
from compress.quantization.qat import QuantizedGraph
from compress.runtimes.onnxruntime import Session
from compress.state import seeded
from compress.steps import Change, Step
from compress.taking import takes

LAYERS = ("Conv", "Gemm", "MatMul", "ConvTranspose")
STRETCH, SHIFT = 1.2, -0.1
REGULARIZATION = 0.01
WARM_UP = 0.2  # share of the iterations before rounding is asked for


@dataclass(frozen=True)
class _Layer:
    node: ir.Node
    source: str  # the tensor that it reads
    weight: str  # the initializer
    quantizer: WeightFakeQuantize


@takes(module=model_of)
def adaround(
    module: QuantizedGraph,
    calibration: Iterable[Any] | None = None,
    *,
    iterations: int = 1000,
    samples: int = 256,
    batch_size: int = 32,
    lr: float = 1e-2,
    seed: int = 0,
) -> Step:
    """Return a copy of what `prepare_qat` made with its weights rounded adaptively; `convert` it, or train it on.

    Needs no labels. Scales stay as they are.

    Args:
        calibration: batches to reconstruct outputs on; default: those that `prepare_qat` was given.
        samples: at most this many of them.

    Raises:
        QuantizationError: `module` does not come from `prepare_qat`.
        DataError: no calibration samples.
    """
    if not isinstance(module, QuantizedGraph):
        raise QuantizationError(f"adaround takes what prepare_qat returned, got {type(module).__name__}")
    rounded = copy.deepcopy(module)
    given = module.calibration if calibration is None else calibration
    inputs = first_samples(given, samples, called="calibration data")
    changes = []
    with seeded(seed):
        for layer in track(list(_layers(rounded)), "rounding", unit="layer"):
            session = Session(rounded.write_back(), outputs=[layer.source])
            x = torch.from_numpy(session.run(inputs)[0].copy())
            changes.append(_round(rounded, layer, x, iterations, batch_size, lr))
    return Step("adaround", rounded, tuple(changes))


def _layers(module: QuantizedGraph) -> Iterator[_Layer]:
    """Yield the layers whose weight one grid rounds, in order of the graph."""
    quantizers = module.quantizers
    found = {}
    for node in module.graph.graph:
        if node.op_type != "QuantizeLinear" or node.inputs[0] is None or node.inputs[1] is None:
            continue
        quantizer, weight = quantizers.get(node.inputs[1].name or ""), node.inputs[0].name or ""
        readers = [reader for pair in consumers(node.outputs[0]) for reader in consumers(pair.outputs[0])]
        if isinstance(quantizer, WeightFakeQuantize) and weight in module.names and len(readers) == 1:
            found[readers[0]] = weight, quantizer
    for node in module.graph.graph:
        if node in found and node.op_type in LAYERS and node.inputs[0] is not None:
            yield _Layer(node, node.inputs[0].name or "", *found[node])


def _round(module: QuantizedGraph, layer: _Layer, x: Tensor, iterations: int, batch_size: int, lr: float) -> Change:
    quantizer, parameter = layer.quantizer, module.get_parameter(module.names[layer.weight])
    run = _function(layer.node)
    with torch.no_grad():
        weight = quantizer.masked(parameter)
        scale = _shaped(quantizer.scale, weight, quantizer.axis)
        floor, wanted = torch.floor(weight / scale), run(x, weight)
        rest = (weight / scale - floor).clamp(1e-4, 1 - 1e-4)
        nearest = float((run(x, quantizer.on_grid(parameter)) - wanted).square().mean())
    v = -torch.log(STRETCH / (rest - SHIFT) - 1)
    v.requires_grad_()
    optimizer = torch.optim.Adam([v], lr)

    def on_grid(up: Tensor) -> Tensor:
        return quantizer.masked(scale * torch.clamp(floor + up, quantizer.low, quantizer.high))

    for index in range(iterations):
        rows = torch.randint(len(x), (min(batch_size, len(x)),))
        up = (torch.sigmoid(v) * STRETCH + SHIFT).clamp(0, 1)
        loss = (run(x[rows], on_grid(up)) - wanted[rows]).square().sum(1).mean()
        progress = (index / iterations - WARM_UP) / (1 - WARM_UP)
        if progress > 0:
            beta = 2 + 18 * (0.5 + 0.5 * math.cos(progress * math.pi))
            loss = loss + REGULARIZATION * (1 - (2 * up - 1).abs().pow(beta)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        result = on_grid((torch.sigmoid(v) * STRETCH + SHIFT >= 0.5).float())
        error = float((run(x, result) - wanted).square().mean())
        if error < nearest:  # else rounding to the nearest was better: keep it
            parameter.copy_(result)
    values = {"error_nearest": nearest, "error_adaptive": error}
    label = layer_of(layer.node)
    if error >= nearest:
        return Change(label, "rounded adaptively", "rounding to the nearest was no worse", skipped=True, values=values)
    return Change(label, "rounded adaptively", values=values)


def _shaped(scale: Tensor, weight: Tensor, axis: int | None) -> Tensor:
    if axis is None:
        return scale
    return scale.reshape([-1 if i == axis % weight.dim() else 1 for i in range(weight.dim())])


def _function(node: ir.Node) -> Run:
    """The layer without its bias, which shifts both sides alike."""
    attributes = {key: attribute.value for key, attribute in node.attributes.items()}
    view = OperatorNode(
        node.op_type, node.name or "", node.version or 20, attributes, (None, None), (None, None), (True, True), 1
    )
    return OPERATORS[node.op_type](view)
