"""Equalization of activations: channels that share one grid brought to one size, exactly, by their neighbours' weights.

With k > 0 for each channel and any f with f(k·x) = k·f(x) (Relu, LeakyRelu, pools, sums; nothing between two layers)

    y = W₂ · f(W₁·x + b₁)   =   (W₂ / k) · f((k·W₁)·x + k·b₁)

A tensor has one scale for all channels, so that one with a large channel rounds the small ones away; weights have a
scale per output channel, so that k·W₁ costs nothing. W₂/k shares its scales among input channels, and a depthwise W₂
does not. k_c = (max_c r / r_c)^α with r_c the reach of channel c, and α of least expected noise at the outputs of the
layers that read the tensor:

    Σ_o [ Δ_x²/12 · Σ_c (w_oc / k_c)²  +  Δ_w,o²/12 · Σ_c k_c² E[x_c²] ]      Δ_x = span(k·x) / 255, Δ_w,o = max_c |w_oc| / (127 k_c)

Where nothing but sums lies between the two, channels are also brought to one centre, exactly (Outlier Suppression+, Wei
et al. 2023): a channel that lies in 3.9 … 5.3 takes the grid of a whole 0 … 5.3, and of 1.4 once 4.6 is taken off:

    y = W₂·(x − s) + (b₂ + W₂·s)                 b₁ ← b₁ − s

k ≥ 1 and no channel grows past the largest: a Clip keeps its bound, since the grid's end clips each channel first.
(Nagel et al. 2019, "Data-Free Quantization", section 4.1, equalizes weights; SmoothQuant, Xiao et al. 2022, migrates
scales from activations; RepQ-ViT, Li et al. 2023, folds them into a layer normalization, which is a W₁ here too.)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from compress.decibels import decibels
from compress.graph.constants import constant_array, is_constant
from compress.graph.editing import Namer, consumers
from compress.graph.naming import layer_of
from compress.quantization.calibration import run_streaming
from compress.quantization.kernels import clip_bounds, number
from compress.quantization.placement import Plan
from compress.steps import Change

ALPHAS = (0.25, 0.5, 0.75, 0.9, 1.0)
WORTH = 0.8  # a set is changed only where its expected noise falls below this share
LARGEST = 64.0  # of k: a channel that hardly ever fires must not be clipped where it does
_AFFINE = frozenset({"Add", "GlobalAveragePool", "Flatten", "Identity", "MaxPool"})
_HOMOGENEOUS = frozenset({"Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "Identity"})


@dataclass(frozen=True)
class Weighing:
    """What the noise of one reader depends on, for each of its outputs and each input that this output reads."""

    node: ir.Node
    power: np.ndarray  # Σ w² over the kernel, (outputs, inputs of its group)
    widest: np.ndarray  # max |w| over the kernel, likewise
    inputs: np.ndarray  # which channel each is, likewise


@dataclass(frozen=True)
class Choice:
    """What a span's channels are multiplied by, after what is taken off each of its tensors (nothing: empty)."""

    factors: np.ndarray
    centres: dict[ir.Value, np.ndarray]
    gain_db: float


@dataclass
class Span:
    """Tensors that must bear the same k: who makes them, who reads them."""

    tensors: list[ir.Value] = field(default_factory=list)
    makers: list[ir.Node] = field(default_factory=list)
    readers: list[ir.Node] = field(default_factory=list)
    passing: list[ir.Node] = field(default_factory=list)  # between them, in order of the graph

    @property
    def name(self) -> str:
        return layer_of(self.makers[0])


@dataclass
class ChannelStatistics:
    """Lowest, highest, mean and mean square of each channel of some tensors."""

    axes: dict[str, int]
    low: dict[str, np.ndarray] = field(default_factory=dict)
    high: dict[str, np.ndarray] = field(default_factory=dict)
    sums: dict[str, np.ndarray] = field(default_factory=dict)
    squares: dict[str, np.ndarray] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def look(self, name: str, values: np.ndarray) -> None:
        others = tuple(i for i in range(values.ndim) if i != self.axes[name] % values.ndim)
        low, high = values.min(others), values.max(others)
        square = np.square(values).sum(others, dtype=np.float64)
        self.sums[name] = self.sums.get(name, 0) + values.sum(others, dtype=np.float64)
        self.low[name] = np.minimum(self.low.get(name, low), low)
        self.high[name] = np.maximum(self.high.get(name, high), high)
        self.squares[name] = self.squares.get(name, 0) + square
        self.counts[name] = self.counts.get(name, 0) + values.size // max(len(low), 1)

    def mean_square(self, name: str, centre: np.ndarray) -> np.ndarray:
        """E[(x − centre)²] of each channel."""
        count = max(self.counts[name], 1)
        return np.maximum(self.squares[name] / count - 2 * centre * self.sums[name] / count + centre**2, 0)


def equalize(graph: ir.Model, plan: Plan, batches: Iterable[Any], *, threads: int | None = None) -> list[Change]:
    """Equalize, in place, the channels of every set of tensors where it lowers the expected noise; one change for each."""
    spans = [span for span in spans_of(graph) if any(str(value.name) in plan.tensors for value in span.tensors)]
    axes = {str(value.name): _axis(value) for span in spans for value in span.tensors}
    statistics = ChannelStatistics(axes)
    if not spans:
        return []
    run_streaming(graph, tuple(axes), batches, statistics.look, threads=threads, description="equalizing")
    namer, changes = Namer(graph), []
    for span in spans:
        found = _best(span, statistics, plan)
        if found is not None:
            _apply(graph, span, found.factors, namer)
            if found.centres:
                _move(graph, span, found.centres, found.factors, namer)
            values = {"expected_db": round(found.gain_db, 2), "largest_factor": round(float(found.factors.max()), 2)}
            reason = f"the noise of this tensor is expected to fall by {found.gain_db:.1f} dB"
            done = "channels equalized and centred" if found.centres else "channels equalized"
            changes.append(Change(span.name, done, reason, values=values))
    return changes


# --- which tensors go together ---


def spans_of(graph: ir.Model) -> list[Span]:
    """The sets of tensors whose channels can be scaled by weights alone, in order of the graph."""
    parent: dict[ir.Value, ir.Value] = {}

    def root(value: ir.Value) -> ir.Value:
        parent.setdefault(value, value)
        while parent[value] is not value:
            value = parent[value]
        return value

    bad: set[ir.Value] = {root(value) for value in (*graph.graph.inputs, *graph.graph.outputs)}
    makers: list[tuple[ir.Value, ir.Node]] = []
    readers: list[tuple[ir.Value, ir.Node]] = []
    for node in graph.graph:
        values = [value for value in node.inputs if value is not None and not is_constant(value)]
        if _scales_output(node):
            makers.append((node.outputs[0], node))
        elif _passes(node):
            for value in values:
                parent[root(value)] = root(node.outputs[0])
        else:
            bad |= {root(value) for value in node.outputs}
        if _scales_input(node):
            readers.append((values[0], node))
        elif not _passes(node):
            bad |= {root(value) for value in values}
    spoiled = {root(value) for value in bad}
    spans: dict[ir.Value, Span] = {}
    for value in list(parent) + [value for value, _ in makers]:
        if root(value) not in spoiled:
            span = spans.setdefault(root(value), Span())
            if value not in span.tensors:
                span.tensors.append(value)
    passing = [(node.outputs[0], node) for node in graph.graph if _passes(node)]
    for kind, found in (("makers", makers), ("readers", readers), ("passing", passing)):
        for value, node in found:
            if root(value) in spans:
                getattr(spans[root(value)], kind).append(node)
    return [span for span in spans.values() if span.makers and span.readers and _of_one_width(span)]


def _passes(node: ir.Node) -> bool:
    """Whether f(k·x) = k·f(x) for it, channel by channel."""
    if node.domain not in ("", "ai.onnx"):
        return False
    if node.op_type in _HOMOGENEOUS:
        return len([value for value in node.outputs if value.uses()]) <= 1
    if node.op_type == "Clip":
        bounds = clip_bounds(node)
        return bounds is not None and bounds[0] == 0 and bounds[1] > 0
    if node.op_type == "Add":
        shapes = [value.shape for value in node.inputs if value is not None]
        return (
            len(shapes) == 2
            and all(shape is not None for shape in shapes)
            and shapes[0] == shapes[1]
            and not any(is_constant(value) for value in node.inputs)
        )
    if node.op_type == "Pad":
        fill = constant_array(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else np.zeros(1)
        pads = constant_array(node.inputs[1]) if len(node.inputs) > 1 else None
        mode = node.attributes.get_string("mode", "constant")
        rank = len(pads) // 2 if pads is not None else 0
        return (
            mode == "constant" and fill is not None and not fill.any() and pads is not None and len(node.inputs) < 4
            and rank >= 2 and not pads[[1, rank + 1]].any()
        )  # fmt: skip
    if node.op_type == "Flatten":
        shape = node.inputs[0].shape if node.inputs[0] is not None else None
        return shape is not None and len(shape) > 2 and all(size == 1 for size in shape[2:])
    return False


def _own_weight(node: ir.Node, index: int = 1) -> bool:
    """A float constant that no other node reads."""
    value = node.inputs[index] if len(node.inputs) > index else None
    array = constant_array(value)
    return array is not None and array.dtype == np.float32 and value is not None and len(list(value.uses())) == 1


def _scales_output(node: ir.Node) -> bool:
    if node.domain not in ("", "ai.onnx"):
        return False
    if node.op_type == "LayerNormalization":
        last = node.attributes.get_int("axis", -1)
        shape = node.inputs[0].shape if node.inputs[0] is not None else None
        return (last == -1 or (shape is not None and last == len(shape) - 1)) and all(
            _own_weight(node, index) for index in range(1, len(node.inputs))
        )
    return node.op_type in ("Conv", "Gemm") and _own_weight(node) and _plain_bias(node)


def _plain_bias(node: ir.Node) -> bool:
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return True
    array = constant_array(node.inputs[2])
    return array is not None and array.ndim == 1 and len(array) > 1


def _scales_input(node: ir.Node) -> bool:
    if node.domain not in ("", "ai.onnx") or node.op_type not in ("Conv", "Gemm", "MatMul") or not _own_weight(node):
        return False
    if node.op_type == "MatMul":
        return len(node.inputs[1].shape or ()) == 2  # type: ignore[union-attr]  # such a node has that input
    return node.op_type == "Conv" or not number(node, "transA", 0)


def _of_one_width(span: Span) -> bool:
    widths = {_outputs(node) for node in span.makers} | {_inputs(node) for node in span.readers}
    return len(widths) == 1 and widths != {1}


def _outputs(node: ir.Node) -> int:
    weight = constant_array(node.inputs[1])
    assert weight is not None
    if node.op_type == "Gemm":
        return weight.shape[0 if number(node, "transB", 0) else 1]
    return weight.shape[0]


def _inputs(node: ir.Node) -> int:
    groups = int(number(node, "group", 1)) if node.op_type == "Conv" else 1
    return groups * _by_input(node).shape[1]


def _by_input(node: ir.Node) -> np.ndarray:
    """The weight as (outputs, inputs, kernel); of a grouped convolution the inputs of one group."""
    weight = constant_array(node.inputs[1])
    assert weight is not None
    if node.op_type == "Conv":
        return weight.reshape(weight.shape[0], weight.shape[1], -1)
    return (weight if node.op_type == "Gemm" and number(node, "transB", 0) else weight.T)[:, :, None]


def _channels_read(node: ir.Node) -> np.ndarray:
    """Which channel each input of `_by_input` is, (outputs, inputs)."""
    outputs, inputs, _ = _by_input(node).shape
    groups = int(number(node, "group", 1)) if node.op_type == "Conv" else 1
    group = np.arange(outputs) // (outputs // groups)
    return group[:, None] * inputs + np.arange(inputs)[None]


def _weighing(node: ir.Node) -> Weighing:
    weight = _by_input(node)
    return Weighing(node, np.square(weight).sum(2), np.abs(weight).max(2), _channels_read(node))


def _axis(value: ir.Value) -> int:
    return 1 if value.shape is not None and len(value.shape) > 3 else -1


# --- how much ---


def _best(span: Span, statistics: ChannelStatistics, plan: Plan) -> Choice | None:
    """The centres and the α of least noise; None where none is worth it."""
    quantized = [value for value in span.tensors if str(value.name) in plan.tensors]
    none: dict[ir.Value, np.ndarray] = {}
    weighings = [_weighing(node) for node in span.readers]
    before = _noise(weighings, np.ones(_inputs(span.readers[0])), none, statistics)
    best, least = None, before * WORTH
    for centres in (none, _centres(span, statistics)) if _moves(span) else (none,):
        reach = np.max([_reach(value, centres, statistics) for value in quantized], axis=0)
        for alpha in ALPHAS:
            factors = np.clip((reach.max() / np.maximum(reach, reach.max() / LARGEST)) ** alpha, 1, LARGEST)
            noise = _noise(weighings, factors, centres, statistics)
            if noise < least:
                best, least = Choice(factors.astype(np.float32), centres, decibels(float(noise), float(before))), noise
    return best


def _reach(value: ir.Value, centres: dict[ir.Value, np.ndarray], statistics: ChannelStatistics) -> np.ndarray:
    low, high = statistics.low[str(value.name)], statistics.high[str(value.name)]
    centre = centres.get(value, np.zeros_like(low))
    return np.maximum(centre - low, high - centre)


def _noise(
    weighings: list[Weighing],
    factors: np.ndarray,
    centres: dict[ir.Value, np.ndarray],
    statistics: ChannelStatistics,
) -> float:
    """Expected noise at the outputs of the layers that read the span, each relative to the signal it reads."""
    total = 0.0
    for weighing in weighings:
        value, inputs = weighing.node.inputs[0], weighing.inputs
        assert value is not None
        name = str(value.name)
        zero = np.zeros_like(statistics.low[name])
        centre = centres.get(value, zero)
        low, high = factors * (statistics.low[name] - centre), factors * (statistics.high[name] - centre)
        step = (max(0.0, float(high.max())) - min(0.0, float(low.min()))) / 255
        power = weighing.power / np.square(factors)[inputs]
        widest = (weighing.widest / factors[inputs]).max(1) / 127
        arriving = (np.square(factors) * statistics.mean_square(name, centre))[inputs]
        rounding = (np.square(widest) * arriving.sum(1)).sum() / 12
        signal = (weighing.power * statistics.mean_square(name, zero)[inputs]).sum()
        total += (step * step / 12 * power.sum() + rounding) / max(float(signal), 1e-30)
    return total


# --- centres ---


def _moves(span: Span) -> bool:
    """Whether f(x − s) = f(x) − s for all that lies between, and the readers can take s back in their biases."""
    between = all(node.op_type in _AFFINE for node in span.passing)
    return (
        between and all(_takes_bias(node) for node in span.readers) and all(_gives_bias(node) for node in span.makers)
    )


def _takes_bias(node: ir.Node) -> bool:
    if node.op_type == "MatMul":
        return False
    pads = node.attributes.get_ints("pads", []) if node.op_type == "Conv" else []
    padded = any(pads) or node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    return not padded and _plain_bias(node)


def _gives_bias(node: ir.Node) -> bool:
    return node.op_type != "LayerNormalization" or len(node.inputs) > 2


def _centres(span: Span, statistics: ChannelStatistics) -> dict[ir.Value, np.ndarray]:
    """The middle of each made tensor's channels; a sum's is the sum of those of its terms."""
    found: dict[ir.Value, np.ndarray] = {}
    for node in span.makers:
        name = str(node.outputs[0].name)
        found[node.outputs[0]] = (statistics.low[name].astype(np.float64) + statistics.high[name]) / 2
    for node in span.passing:
        terms = [found[value] for value in node.inputs if value in found]
        found[node.outputs[0]] = np.sum(terms, axis=0)
    return found


def _move(graph: ir.Model, span: Span, centres: dict[ir.Value, np.ndarray], factors: np.ndarray, namer: Namer) -> None:
    """Take the centres off, in place, once the factors are in the weights: k·(x − s) is what arrives."""
    for node in span.makers:
        _add_to_bias(graph, node, -factors * centres[node.outputs[0]], namer)
    for node in span.readers:
        value = node.inputs[0]
        assert value is not None
        moved = (factors * centres[value])[_channels_read(node)]
        _add_to_bias(graph, node, (_by_input(node).sum(2) * moved).sum(1), namer)


def _add_to_bias(graph: ir.Model, node: ir.Node, amount: np.ndarray, namer: Namer) -> None:
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    array = constant_array(bias)
    name = str(bias.name) if bias is not None else f"{node.name}.bias"
    fresh = namer.initializer(graph, name, ((0 if array is None else array) + amount).astype(np.float32))
    if len(node.inputs) < 3:
        node.resize_inputs(3)
    node.replace_input_with(2, fresh)


# --- in place ---


def _apply(graph: ir.Model, span: Span, factors: np.ndarray, namer: Namer) -> None:
    for node in span.makers:
        if node.op_type == "LayerNormalization":
            for index in range(1, len(node.inputs)):
                _scale(graph, node, index, factors, namer)
            continue
        weight = constant_array(node.inputs[1])
        assert weight is not None
        along = 1 if node.op_type == "Gemm" and not number(node, "transB", 0) else 0
        _scale(graph, node, 1, factors.reshape([-1 if i == along else 1 for i in range(weight.ndim)]), namer)
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            _scale(graph, node, 2, factors, namer)
    for node in span.readers:
        weight = constant_array(node.inputs[1])
        assert weight is not None
        _scale(graph, node, 1, _for_reader(node, weight, 1 / factors), namer)


def _for_reader(node: ir.Node, weight: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """What a reader's weight is multiplied by, of a shape that broadcasts to it."""
    if node.op_type != "Conv":
        return factors[None, :] if node.op_type == "Gemm" and number(node, "transB", 0) else factors[:, None]
    groups = int(number(node, "group", 1))
    each = weight.shape[0] // groups
    rows = factors.reshape(groups, -1)[np.arange(weight.shape[0]) // each]  # (outputs, inputs of the group)
    return rows.reshape(*rows.shape, *[1] * (weight.ndim - 2))


def _scale(graph: ir.Model, node: ir.Node, index: int, factors: np.ndarray, namer: Namer) -> None:
    value = node.inputs[index]
    array = constant_array(value)
    assert array is not None and value is not None
    fresh = namer.initializer(graph, str(value.name), (array * factors).astype(np.float32))
    node.replace_input_with(index, fresh)
    if not consumers(value) and value.is_initializer():
        graph.graph.initializers.pop(str(value.name), None)
