"""Channels of depthwise layers padded with zeros to a multiple the int8 kernel likes.

    y = W₂ * f(D * g(W₁ * x + b₁))        D depthwise on C channels, f and g acting on each channel alone
    C′ = m·⌈C/m⌉ channels: W₁, b₁, D get C′ − C zero rows, W₂ gets as many zero columns

Whatever f and g make of a padded channel, W₂ multiplies it by zero: y is unchanged. The channels that must be padded
together are found by walking from the depthwise layer through operators that keep channels apart (activations, pools,
a product with a squeeze-excite gate, sums, further depthwise layers) until ordinary convolutions begin and end them.
A walk that meets anything else (Concat, Reshape, an output of the graph) is refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from compress.graph.constants import constant_array
from compress.graph.editing import add_initializer
from compress.quantization.kernels import is_depthwise
from compress.quantization.rewrites.matching import name_of, nodes, stays_float
from compress.steps import Change

MULTIPLE = 16
MOST = 1.34  # times as many channels at most: 24 → 32 is still worth it, 20 → 32 is not
ACTION = "channels padded"
_UNARY = frozenset(
    [
        "AveragePool",
        "Clip",
        "Dropout",
        "Elu",
        "Erf",
        "Gelu",
        "GlobalAveragePool",
        "GlobalMaxPool",
        "HardSigmoid",
        "HardSwish",
        "Identity",
        "LeakyRelu",
        "MaxPool",
        "Mish",
        "Relu",
        "Selu",
        "Sigmoid",
        "Softplus",
        "Swish",
        "Tanh",
    ]
)
_BINARY = frozenset({"Add", "Div", "Max", "Min", "Mul", "Sub"})


class Refused(Exception):
    """Why a set of channels cannot be padded; never leaves this file."""


@dataclass
class _Region:
    """Channels that go together: who makes them, who reads them, what lies between."""

    channels: int
    values: set[ir.Value] = field(default_factory=set)
    makers: dict[ir.Node, None] = field(default_factory=dict)
    readers: dict[ir.Node, None] = field(default_factory=dict)
    depthwise: dict[ir.Node, None] = field(default_factory=dict)
    constants: dict[tuple[ir.Node, int], None] = field(default_factory=dict)


def apply(graph: ir.Model, *, multiple: int = MULTIPLE, only: frozenset[str] | None = None) -> tuple[Change, ...]:
    """Pad, in place, the channels of every depthwise convolution that is no multiple of `multiple`.

    `only` names the depthwise nodes to look at (None: all). Channel counts that would grow by more than a third stay.
    """
    changes: list[Change] = []
    seen: set[ir.Node] = set()
    for node in nodes(graph, "Conv"):
        if not is_depthwise(node) or node in seen or (only is not None and name_of(node) not in only):
            continue
        if stays_float(node):
            continue
        channels = _channels(node)
        padded = -(-channels // multiple) * multiple
        if padded == channels:
            continue
        if padded > channels * MOST:
            reason = f"{channels} → {padded} channels would cost more than it saves"
            changes.append(Change(name_of(node), ACTION, reason, skipped=True))
            continue
        try:
            region = find_region(node)
        except Refused as refusal:
            changes.append(Change(name_of(node), ACTION, str(refusal), skipped=True))
            continue
        seen.update(region.depthwise)
        _pad(graph, region, padded)
        changes.append(
            Change(
                name_of(node),
                f"{channels} → {padded} channels",
                "",
                values={"channels": channels, "padded": padded, "layers": [name_of(item) for item in region.depthwise]},
            )
        )
    return tuple(changes)


def find_region(start: ir.Node) -> _Region:
    """The channels that belong with those of a depthwise convolution; raises `Refused` where they have no end."""
    region = _Region(_channels(start))
    pending: list[ir.Value | None] = [start.inputs[0], start.outputs[0]]
    while pending:
        value = pending.pop()
        if value is None or value in region.values:
            continue
        region.values.add(value)
        if value.is_graph_input() or value.is_graph_output():
            raise Refused("its channels reach an input or output of the graph")
        pending += _before(value, region)
        for reader, position in value.uses():
            pending += _after(reader, position, region)
    return region


def _channels(node: ir.Node) -> int:
    weight = node.inputs[1]
    if weight is None or weight.shape is None:
        raise Refused("its weight has no shape")
    return int(weight.shape[0])  # type: ignore[arg-type]  # stored: no free dimension


def _before(value: ir.Value, region: _Region) -> list[ir.Value | None]:
    """Values on the other side of the node that makes `value`, which must be padded too."""
    node = value.producer()
    if node is None:
        raise Refused("its channels come from a constant")
    if node.op_type == "Conv" and node.domain == "":
        if is_depthwise(node) and _channels(node) == region.channels:
            region.depthwise[node] = None
            return [node.inputs[0]]
        _check_plain(node)
        region.makers[node] = None
        return []
    return _through(node, region)


def _after(node: ir.Node, position: int, region: _Region) -> list[ir.Value | None]:
    if node.op_type == "Conv" and node.domain == "":
        if position != 0:
            raise Refused(f"{name_of(node)} takes the channels as weights")
        if is_depthwise(node) and _channels(node) == region.channels:
            region.depthwise[node] = None
            return [node.outputs[0]]
        _check_plain(node)
        region.readers[node] = None
        return []
    return _through(node, region)


def _check_plain(node: ir.Node) -> None:
    if node.attributes.get_int("group", 1) != 1 or constant_array(node.inputs[1]) is None:
        raise Refused(f"{name_of(node)} is a grouped convolution, or its weights are computed")
    if len(node.inputs) > 2 and node.inputs[2] is not None and constant_array(node.inputs[2]) is None:
        raise Refused(f"the bias of {name_of(node)} is computed")


def _through(node: ir.Node, region: _Region) -> list[ir.Value | None]:
    """The values that a node between maker and reader ties together."""
    if node.domain == "" and node.op_type in _UNARY and len(node.outputs) == 1:
        return [node.inputs[0], node.outputs[0]]
    if node.domain != "" or node.op_type not in _BINARY:
        raise Refused(f"its channels reach {name_of(node)} ({node.op_type}), which may mix them")
    if node.op_type == "Div" and constant_array(node.inputs[1]) is None:
        raise Refused(f"{name_of(node)} would divide by the zeros")
    linked: list[ir.Value | None] = [node.outputs[0]]
    for position, value in enumerate(node.inputs):
        array = constant_array(value)
        if array is None:
            if value is None or value.shape is None or len(value.shape) != 4 or value.shape[1] != region.channels:
                raise Refused(f"{name_of(node)} meets a tensor of other channels")
            linked.append(value)
        elif array.size != 1:
            if array.ndim < 3 or array.shape[-3] != region.channels:
                raise Refused(f"{name_of(node)} meets a constant of other channels")
            region.constants[node, position] = None
    return linked


# --- padding what was found ---


def _pad(graph: ir.Model, region: _Region, padded: int) -> None:
    extra = padded - region.channels
    for node in region.makers:
        _pad_constant(graph, node, 1, 0, extra)
        _pad_bias(graph, node, extra)
    for node in region.depthwise:
        _pad_constant(graph, node, 1, 0, extra)
        _pad_bias(graph, node, extra)
        node.attributes["group"] = ir.AttrInt64("group", padded)
    for node in region.readers:
        _pad_constant(graph, node, 1, 1, extra)
    for node, position in region.constants:
        array = constant_array(node.inputs[position])
        # One is harmless in a product as in a sum; zero would divide by nothing.
        _pad_constant(graph, node, position, (array.ndim if array is not None else 3) - 3, extra, fill=1.0)
    for value in region.values:
        if value.shape is not None:
            value.shape = ir.Shape([padded if axis == 1 else size for axis, size in enumerate(value.shape)])


def _pad_bias(graph: ir.Model, node: ir.Node, extra: int) -> None:
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        _pad_constant(graph, node, 2, 0, extra)


def _pad_constant(graph: ir.Model, node: ir.Node, position: int, axis: int, extra: int, fill: float = 0.0) -> None:
    old = node.inputs[position]
    array = constant_array(old)
    if old is None or array is None:
        raise Refused(f"input {position} of {name_of(node)} is computed")
    widths = [(0, extra if index == axis else 0) for index in range(array.ndim)]
    padded = np.pad(array, widths, constant_values=fill)
    node.replace_input_with(position, add_initializer(graph, f"{old.name}_padded", padded))
