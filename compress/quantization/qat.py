"""Quantization-aware training on the graph that ships.

module = prepare_qat(model, calibration)     the static int8 graph, weights float, as a torch module
fit(module, data, …)                         any training loop
step = convert(module)                       the trained int8 graph, held against ONNX Runtime
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from compress.batches import call, read_batch
from compress.counting import counted
from compress.errors import QuantizationError
from compress.given import batches_of, model_of
from compress.graph.editing import consumers
from compress.graph.module import GraphModule, set_initializer
from compress.graph.plan import Replacement, to_torch
from compress.options import spelled_out
from compress.quantization.arithmetic import symmetric_scales
from compress.quantization.fake_quantize import NO_BOUNDS, BiasFakeQuantize, FakeQuantize, WeightFakeQuantize
from compress.quantization.insertion import CLIP
from compress.quantization.kernels import MOVING
from compress.quantization.options import StaticFields, StaticOptions
from compress.quantization.pairs import has_pairs
from compress.quantization.static import fold_weights, quantize_static
from compress.quantization.weights import LIMIT, bias_of, pairs_saturate_in, wants_of
from compress.runtimes.onnxruntime import Session
from compress.state import evaluating
from compress.steps import Change, Step
from compress.taking import takes

RANGES = {ir.DataType.UINT8: (0, 255), ir.DataType.INT8: (-128, 127)}
AGREEMENT = 0.995  # share of samples whose first class must be the same in ONNX Runtime
SAFE_IN_PAIRS = 64  # codes of this magnitude never overflow a 16-bit sum of two u8·s8 products
STEPS = 2.0  # largest difference of an output, in quantization steps
AS_FAR = 1.5  # times the distance of ONNX Runtime's own two executions; beyond it something else than rounding differs


class QuantizedGraph(GraphModule):
    """A static int8 graph that trains: fake quantization at exactly its quantize/dequantize pairs.

    `quantizers` has one `FakeQuantize` for each grid of the graph, by the name of its scale;
    `changes` and `notes` are those of the static quantization.
    """

    def __init__(self, graph: ir.Model, *, scales: str, changes: Sequence[Change], notes: Sequence[str]) -> None:
        grids = dict(_grids(graph, scales))
        super().__init__(graph, replacements={**dict(_replacements(graph, grids)), **dict(_biases(graph, grids))})
        # By name only: as submodules they stand in `replacements`, once each.
        self._grid_keys = {
            name: next(key for key, part in self.replacements.items() if part is module)
            for name, module in grids.items()
            if any(part is module for part in self.replacements.values())
        }
        self.changes, self.notes = tuple(changes), tuple(notes)
        self.calibration: Iterable[Any] = ()

    @property
    def quantizers(self) -> dict[str, FakeQuantize]:
        found = {name: self.replacements[key] for name, key in self._grid_keys.items()}
        return {name: part for name, part in found.items() if isinstance(part, FakeQuantize)}

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "calibration": ()}  # data loaders do not travel

    def __deepcopy__(self, memo: dict[int, Any]) -> QuantizedGraph:
        memo[id(self.calibration)] = self.calibration  # shared, not copied
        duplicate = super().__deepcopy__(memo)
        assert isinstance(duplicate, QuantizedGraph)
        return duplicate

    def write_back(self) -> ir.Model:
        """Return the graph with the scales and zero points as they are now, the weights float but on their grids."""
        graph = super().write_back()
        for name, quantizer in self.quantizers.items():
            set_initializer(graph, name, quantizer.scale)
        for node in graph.graph:
            scale = _name(node.inputs[1]) if node.op_type == "QuantizeLinear" else ""
            if scale not in self.quantizers:
                continue
            quantizer, source = self.quantizers[scale], _name(node.inputs[0])
            if isinstance(quantizer, WeightFakeQuantize):
                weight = self._parameters.get(self.names.get(source, ""))
                if weight is not None:
                    set_initializer(graph, source, quantizer.on_grid(weight))
            elif node.inputs[2] is not None:
                set_initializer(graph, _name(node.inputs[2]), quantizer.zero_point)
        return graph


@dataclass(frozen=True)
class QATSchedule:
    """When ranges are frozen and when rounding begins, in epochs counted from 0.

    `freeze_ranges_from=3`: three epochs adapt the scales, later ones train the weights alone.
    `quantize_from=1`: the first epoch trains in float (and observes).
    """

    freeze_ranges_from: int | None = None
    quantize_from: int = 0

    def apply(self, module: nn.Module, epoch: int) -> None:
        """Set every fake-quantize of `module` for `epoch`; call it before the epoch starts."""
        frozen = self.freeze_ranges_from is not None and epoch >= self.freeze_ranges_from
        for part in fake_quantizers(module):
            part.quantizing = epoch >= self.quantize_from
            if frozen:
                part.freeze()
            else:
                part.unfreeze()


def fake_quantizers(module: nn.Module) -> Iterator[FakeQuantize]:
    """Yield every fake-quantize in a module (also inside DistributedDataParallel)."""
    return (part for part in module.modules() if isinstance(part, FakeQuantize))


def freeze_ranges(module: nn.Module) -> None:
    """Keep every scale of `module` as it is from now on."""
    for part in fake_quantizers(module):
        part.freeze()


@takes()
def prepare_qat(
    model: nn.Module | ir.Model | str | Path,
    calibration: Iterable[Any],
    *,
    scales: str = "learned",
    options: StaticOptions | None = None,
    example_inputs: Any = None,
    threads: int | None = None,
    **fields: Unpack[StaticFields],
) -> QuantizedGraph:
    """Turn a model into a module that trains the int8 graph it will ship as.

    The module is the graph of `quantize_static` with the same arguments, its weights float parameters behind
    fake quantization. Train it as any module, then `convert` it. Weights that are zero stay zero.

    Args:
        model: a module, a graph, or the path of an `.onnx` file. Not touched.
        calibration: as for `quantize_static`; `convert` reads it again to compare with ONNX Runtime.
        scales: `learned` (LSQ), `observed` (moving averages) or `fixed` (as calibrated).
        options, fields: as for `quantize_static`; the weights are not folded, whatever they say.

    Raises:
        QuantizationError: unknown scales; or as `quantize_static`.
        UnsupportedOperatorError: the graph has an operator that cannot be trained.
    """
    if scales not in ("learned", "observed", "fixed"):
        FakeQuantize(torch.ones(()), 0, 0, 255, scales=scales)  # raises, with the nearest name
    calibration = batches_of(calibration)
    options = replace(spelled_out(StaticOptions, options, fields, "prepare_qat"), fold_weights=False)
    step = quantize_static(model, calibration, options, example_inputs=example_inputs, threads=threads)
    module = QuantizedGraph(step.model, scales=scales, changes=step.changes, notes=step.notes)
    module.calibration = calibration
    return module


@takes(module=model_of)
def convert(module: nn.Module, inputs: Iterable[Any] | None = None, *, samples: int = 256) -> Step:
    """Return the trained int8 graph, ready to ship, and how well ONNX Runtime agrees with the module.

    Weights become int8 codes, biases int32, scales and zero points constants of the graph. The module is not
    touched; a DistributedDataParallel around it is looked through.

    Args:
        inputs: batches to compare on; default: the calibration data.
        samples: at most this many of them.

    Raises:
        QuantizationError: `module` does not come from `prepare_qat`.
    """
    inner = getattr(module, "module", module)
    if not isinstance(inner, QuantizedGraph):
        raise QuantizationError(f"convert takes what prepare_qat returned, got {type(module).__name__}")
    graph = fold_weights(inner.write_back())
    batches = inner.calibration if inputs is None else inputs
    found = agreement(inner, graph, batches, samples=samples)
    learned = Change("graph", "trained with its int8 grids", values={**found.as_dict(), "grids": len(inner.quantizers)})
    return Step("quantize qat", graph, (*inner.changes, learned), (*inner.notes, found.sentence()))


@dataclass(frozen=True)
class Agreement:
    """How far ONNX Runtime is from the trained module.

    A step is the scale of the output where it is quantized, else 1/255 of its extent. A code that one side rounds up and
    the other down moves codes behind it, so two right executions of a deep network part by many steps. How far is
    measured: `rounding` is the mean distance (in steps, root mean square) of the same file executed as written from the
    optimized one, `distance` that of the module from the optimized one.
    """

    samples: int
    top1: float | None  # share of samples with the same first class; None where no output has classes
    steps: float  # largest difference
    output: str
    distance: float = 0.0
    rounding: float = 0.0

    @property
    def by_rounding(self) -> bool:
        """Whether ONNX Runtime's two ways of executing the file are as far from each other."""
        return 0 < self.distance <= AS_FAR * self.rounding

    @property
    def is_close(self) -> bool:
        """Whether the outputs are as near as those of a network that is not deep."""
        return self.steps <= STEPS and (self.top1 is None or self.top1 >= AGREEMENT)

    @property
    def holds(self) -> bool:
        return self.by_rounding or self.is_close

    def as_dict(self) -> dict[str, Any]:
        return {
            "samples": self.samples,
            "top1_agreement": self.top1,
            "largest_steps": self.steps,
            "output": self.output,
            "distance_steps": self.distance,
            "rounding_steps": self.rounding,
        }

    def sentence(self) -> str:
        if not self.samples:
            return "not compared with ONNX Runtime: no inputs to compare on"
        share = "" if self.top1 is None else f"the same first class on {self.top1:.1%}, "
        sentence = f"ONNX Runtime against the trained module on {counted(self.samples, 'sample')}: {share}at most {self.steps:.2g} steps apart"
        if self.is_close:
            return sentence
        if self.by_rounding:
            means = (
                f"{self.distance:.2g} in the mean, {self.rounding:.2g} between its own optimized and plain execution"
            )
            return f"{sentence} ({means}: rounding that grows from layer to layer)"
        return f"{sentence}, which is more than expected (99.5 %, {STEPS:g} steps)"


def agreement(module: GraphModule, graph: ir.Model, batches: Iterable[Any], *, samples: int = 256) -> Agreement:
    """Compare `module`, in eval mode, with `graph` in ONNX Runtime on at most `samples` real inputs."""
    session, written, seen = Session(graph), Session(graph, optimize=False), 0
    ours: list[list[np.ndarray]] = []
    theirs: list[list[np.ndarray]] = []
    plain: list[list[np.ndarray]] = []
    device = next((part.device for part in module.parameters()), torch.device("cpu"))
    with evaluating(module):
        for batch in batches:
            given = read_batch(batch).part(0, samples - seen)
            outputs = call(module, given.to(device))
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            ours.append([value.float().cpu().numpy() for value in outputs])
            theirs.append([np.asarray(value, np.float32) for value in session.run(given)])
            plain.append([np.asarray(value, np.float32) for value in written.run(given)])
            seen += given.samples
            if seen >= samples:
                break
    if not seen:
        return Agreement(0, None, 0.0, "")
    worst, output, top1, distance, rounding = 0.0, module.output_names[0], None, 0.0, 0.0
    for index, name in enumerate(module.output_names):
        a, b, c = (
            np.concatenate([row[index].reshape(len(row[index]), -1) for row in rows]) for rows in (ours, theirs, plain)
        )
        step = _step_of(graph, index, a)
        steps = float(np.abs(a - b).max(initial=0.0)) / step
        if steps > worst:
            worst, output = steps, name
            distance, rounding = (float(np.sqrt(np.mean(np.square(value - b)))) / step for value in (a, c))
        if index == 0 and ours[0][0].ndim == 2 and a.shape[1] > 1:
            top1 = float((a.argmax(1) == b.argmax(1)).mean())
    return Agreement(seen, top1, worst, output, distance, rounding)


def _step_of(graph: ir.Model, index: int, values: np.ndarray) -> float:
    node = graph.graph.outputs[index].producer()
    if node is not None and node.op_type == "DequantizeLinear" and node.inputs[1] is not None:
        scale = node.inputs[1].const_value
        if scale is not None and scale.size == 1:
            return float(scale.numpy().reshape(()))
    return max(float(values.max() - values.min()) / 255, 1e-12)


# --- from the graph's pairs to fake-quantize modules ---


def _name(value: ir.Value | None) -> str:
    return "" if value is None else value.name or ""


def _grids(graph: ir.Model, scales: str) -> Iterator[tuple[str, FakeQuantize]]:
    """Yield one fake-quantize for each scale that a QuantizeLinear reads, by the scale's name."""
    bounds = _bounds(graph)
    seen = set()
    for node in graph.graph:
        if node.op_type != "QuantizeLinear" or len(node.inputs) < 3 or _name(node.inputs[1]) in seen:
            continue
        scale, zero = (value.const_value if value is not None else None for value in node.inputs[1:3])
        if scale is None or zero is None or zero.dtype not in RANGES:
            continue
        name = _name(node.inputs[1])
        seen.add(name)
        axis = node.attributes["axis"].as_int() if scale.size > 1 and "axis" in node.attributes else None
        step = to_torch(scale)
        if LIMIT in node.metadata_props:
            yield name, _weight_grid(graph, node, step, axis, scales)
            continue
        low, high = RANGES[zero.dtype]
        point = int(zero.numpy().reshape(-1)[0])
        # A constant's grid fits it exactly as it is.
        source = "fixed" if _initial(node.inputs[0]) is not None else scales
        yield name, FakeQuantize(step, point, low, high, scales=source, bounds=bounds.get(name, NO_BOUNDS))


def _weight_grid(graph: ir.Model, node: ir.Node, scale: Tensor, axis: int | None, scales: str) -> WeightFakeQuantize:
    limit, weight = int(node.metadata_props[LIMIT]), _initial(node.inputs[0])
    readers = (reader for pair in consumers(node.outputs[0]) for reader in consumers(pair.outputs[0]))
    if limit > SAFE_IN_PAIRS and pairs_saturate_in(graph) and any(has_pairs(reader) for reader in readers):
        # While weights move, no pair of them may leave 16 bits: seven bits never do (see pairs.py).
        limit = SAFE_IN_PAIRS
        if weight is not None:
            scale = torch.from_numpy(symmetric_scales(weight.numpy(), axis, limit)).reshape(scale.shape)
    return WeightFakeQuantize(scale, limit, scales=scales, axis=axis, zeros=_pruned(weight))


def _bounds(graph: ir.Model) -> dict[str, tuple[float, float]]:
    """Return, for each scale, the clip that its range stands for (the narrowest, where several tensors share it)."""
    found: dict[str, tuple[float, float]] = {}
    for node in graph.graph:
        if node.op_type == "QuantizeLinear" and CLIP in node.metadata_props:
            low, high = (float(word) for word in node.metadata_props[CLIP].split())
            before = found.get(_name(node.inputs[1]), NO_BOUNDS)
            found[_name(node.inputs[1])] = max(low, before[0]), min(high, before[1])
    return found


def _initial(value: ir.Value | None) -> Tensor | None:
    return None if value is None or value.const_value is None else to_torch(value.const_value)


def _pruned(weight: Tensor | None) -> Tensor | None:
    """Return where a weight is zero, if it is pruned: some of it zero, not all (a zero-initialized layer learns)."""
    if weight is None:
        return None
    zeros = weight == 0
    return zeros if bool(zeros.any()) and not bool(zeros.all()) else None


def _replacements(graph: ir.Model, grids: Mapping[str, FakeQuantize]) -> Iterator[tuple[str, Replacement]]:
    """Yield for each pair quantize → dequantize on one grid what takes its place."""
    same = nn.Identity()
    for node in graph.graph:
        if node.op_type != "DequantizeLinear":
            continue
        before = node.inputs[0].producer() if node.inputs[0] is not None else None
        if before is None or before.op_type != "QuantizeLinear":
            continue
        name = _name(node.inputs[1])
        if name not in grids or name != _name(before.inputs[1]) or _name(node.inputs[2]) != _name(before.inputs[2]):
            continue
        # What is on the grid already, moved only, stays as it is: rounding it again would cost and change nothing.
        module = same if _on_grid(before.inputs[0], name) else grids[name]
        yield _name(node.outputs[0]), Replacement(module, (_name(before.inputs[0]),))


def _biases(graph: ir.Model, grids: Mapping[str, FakeQuantize]) -> Iterator[tuple[str, Replacement]]:
    """Yield for each bias that becomes int32 what rounds it to the accumulator's grid."""
    for node in graph.graph if not wants_of(graph, "float_bias") else ():
        found = bias_of(node)
        if found is None or len(found[2].uses()) != 1:
            continue
        pair = (value.producer() if value is not None else None for value in node.inputs[:2])
        activation, weight = (grids.get(_name(part.inputs[1])) if part is not None else None for part in pair)
        if activation is not None and weight is not None:
            name = _name(found[2])
            yield name, Replacement(BiasFakeQuantize(activation, weight), (name,))


def _on_grid(value: ir.Value | None, scale: str) -> bool:
    node = value.producer() if value is not None else None
    if node is None or node.op_type not in MOVING or node.op_type == "Resize":
        return False
    source = node.inputs[0].producer() if node.inputs[0] is not None else None
    return source is not None and source.op_type == "DequantizeLinear" and _name(source.inputs[1]) == scale
