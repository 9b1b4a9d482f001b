"""Bias correction in sequence: each layer's mean error, on what really arrives, is taken off its bias.

For the layers in order, with y the float network's output of a layer before its activation and ŷ the quantized one's, where
all layers before are quantized and corrected already:

    b ← b + E[y − ŷ]          one number per output channel, the mean over samples and positions

where y lies inside its activation: an error at −5 before a Relu changes nothing, and there are many of them. Where nothing
but a sum follows the layer, y is the sum: the other term has errors of its own, which else would add up.

Nagel et al. 2019, "Data-Free Quantization", section 4.2, does it from the weights' error alone (`bias_correction.py`); here
the errors of activations, ranges and earlier layers are in it as well.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from compress.batches import Batch
from compress.graph.constants import constant_array, is_constant
from compress.graph.editing import Namer, remove_unused
from compress.progress import track
from compress.quantization.bias_correction import corrected_sites
from compress.quantization.calibrated import Calibrated
from compress.quantization.calibration import all_rows
from compress.quantization.kernels import CLIPS, clip_bounds
from compress.quantization.placement import Site
from compress.quantization.repairs.judge import Samples
from compress.quantization.weights import bias_of, fold_bias, wants_of
from compress.runtimes.onnxruntime import Session, with_outputs

MOST = 48  # samples; means of more differ by less than a step
ROWS = 16  # samples whose outputs of one layer are in memory
FEW = 8  # so many positions are imagined without error, so that a channel that hardly fires is hardly moved
FETCH_BYTES = 256 << 20  # of float tensors that are in memory
NO_BOUNDS = (-math.inf, math.inf)


@dataclass(frozen=True)
class Place:
    """Where a layer's output is to be right on average: by node name, between which bounds, along which axis."""

    layer: str
    node: str
    bounds: tuple[float, float]
    axis: int


def shifts_in_sequence(
    calibrated: Calibrated, samples: Samples, *, threads: int | None = None
) -> dict[str, np.ndarray]:
    """What to add to the bias of each layer, by node name."""
    plan = calibrated.planned(calibrated.graph)
    floats = {str(node.name): node for node in calibrated.graph.graph}
    graph = calibrated.quantize(tables=False).model
    namer, shifts = Namer(graph), {}
    nodes = {str(node.name): node for node in graph.graph}
    sites = [site for site in corrected_sites(plan.sites) if site.node.name not in calibrated.excluded]
    places, inputs = [], samples.fitting.part(0, MOST)
    for place in map(_place, sites):
        node = nodes.get(place.layer)
        if node is not None and place.node in nodes and (bias_of(node) or _folded_bias(node)) is not None:
            places.append(place)
    wanted = _in_float(calibrated.graph, [str(floats[place.node].outputs[0].name) for place in places], inputs, threads)
    for place, values in track(zip(places, wanted), "correcting biases", total=len(places), unit="layer"):
        node = nodes[place.layer]
        shift = _mean_error(values, (graph, nodes[place.node]), place, inputs, threads)
        if np.any(shift):
            shifts[place.layer] = shift
            _add(graph, node, shift, namer)
    return shifts


def _place(site: Site) -> Place:
    """The layer itself, or the sum that alone reads it."""
    output, axis = site.node.outputs[0], 1 if site.node.op_type == "Conv" else -1
    bounds = clip_bounds(site.clip) if site.clip is not None else None
    uses = list(output.uses())
    reader = uses[0].node if len(uses) == 1 and not output.is_graph_output() and site.bias is None else None
    if reader is None or reader.op_type != "Add" or any(is_constant(value) for value in reader.inputs):
        return Place(str(site.node.name), str(site.node.name), bounds or NO_BOUNDS, axis)
    after = list(reader.outputs[0].uses())
    clip = after[0].node if len(after) == 1 and after[0].node.op_type in CLIPS else None
    return Place(str(site.node.name), str(reader.name), (clip and clip_bounds(clip)) or NO_BOUNDS, axis)


def _in_float(graph: ir.Model, names: Sequence[str], inputs: Batch, threads: int | None) -> Iterator[np.ndarray]:
    """What each tensor is in float, one after the other; as many are fetched in one run as a budget of memory holds."""
    if not names:
        return
    one = inputs.part(0, 1)
    sizes = [value.nbytes * inputs.samples for value in all_rows(Session(graph, outputs=names, threads=threads), one)]
    while names:
        count = max(1, int(np.searchsorted(np.cumsum(sizes), FETCH_BYTES, side="right")))
        cut = Session(with_outputs(graph, names[:count]), outputs=names[:count], threads=threads, arena=False)
        yield from all_rows(cut, inputs)
        names, sizes = names[count:], sizes[count:]


def _mean_error(
    float_values: np.ndarray, cut: tuple[ir.Model, ir.Node], place: Place, inputs: Batch, threads: int | None
) -> np.ndarray:
    """E[y − ŷ] of each channel where the float y is inside its bounds; the graph is cut off behind the place."""
    session = Session(with_outputs(cut[0], [str(cut[1].outputs[0].name)]), threads=threads, arena=False)
    total, count = np.zeros(1), np.zeros(1)
    for first in range(0, inputs.samples, ROWS):
        (found,) = all_rows(session, inputs.part(first, first + ROWS))
        wanted = float_values[first : first + ROWS]
        inside = (wanted > place.bounds[0]) & (wanted < place.bounds[1])
        others = tuple(i for i in range(wanted.ndim) if i != place.axis % wanted.ndim)
        total = total + ((wanted - found) * inside).sum(others, dtype=np.float64)
        count = count + inside.sum(others)
    return total / (count + FEW)


def _folded_bias(node: ir.Node) -> tuple[ir.Node, int, ir.Value] | None:
    """(node that reads it, position, codes) of an int32 bias behind its DequantizeLinear."""
    readers = [node] if node.op_type != "MatMul" else [use.node for use in node.outputs[0].uses()]
    for reader in readers:
        for position in range(2 if reader is node else 0, len(reader.inputs)):
            value = reader.inputs[position]
            maker = value.producer() if value is not None else None
            if maker is not None and maker.op_type == "DequantizeLinear" and maker.inputs[0] is not None:
                codes = constant_array(maker.inputs[0])
                if codes is not None and codes.dtype == np.int32:
                    return reader, position, maker.inputs[0]
    return None


def _add(graph: ir.Model, node: ir.Node, shift: np.ndarray, namer: Namer) -> None:
    """Add `shift` to the bias, in place, in units of its codes."""
    folded = _folded_bias(node)
    if folded is not None:
        reader, position, codes = folded
        maker = reader.inputs[position].producer()  # type: ignore[union-attr]  # such a node has that input
        assert maker is not None
        scale, old = constant_array(maker.inputs[1]), constant_array(codes)
        assert scale is not None and old is not None
        moved = old + np.rint(shift / scale)
        fresh = namer.initializer(graph, str(codes.name), np.clip(moved, -(2**31) + 1, 2**31 - 1).astype(np.int32))
        maker.replace_input_with(0, fresh)
        remove_unused(graph)
        return
    found = bias_of(node)
    if found is not None:
        reader, position, bias = found
        old = constant_array(bias)
        assert old is not None
        fresh = namer.initializer(graph, str(bias.name), (old + shift).astype(np.float32))
        reader.replace_input_with(position, fresh)
        if not wants_of(graph, "float_bias"):
            fold_bias(graph, node, reader, position, fresh, namer)
