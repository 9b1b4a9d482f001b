"""Where a graph is quantized: a plan that can be read before it is applied.

Which nodes run in int8 is the greatest set in which
    a heavy node                is always in;
    a light or moving node      is in if all its activations arrive in int8 and some reader wants its result in int8.
So int8 runs between the heavy nodes without a gap, and never where it would only add conversions
(a residual stream read by layer normalizations alone stays float). Tensors that must have the
same scale form a group: a moving node's input and output, a Concat's inputs and output.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from compress.errors import QuantizationError, nearest
from compress.graph.constants import constant_array, is_constant
from compress.graph.naming import layer_of
from compress.quantization.kernels import (
    CLIPS,
    HEAVY,
    MOVING,
    ON_REQUEST,
    QUANTIZABLE,
    STORED,
    activation_inputs,
    clip_bounds,
    has_weight,
    refusal,
)
from compress.steps import Change

_NO_CLIP = (float("-inf"), float("inf"))


@dataclass(frozen=True)
class Site:
    """One node that runs in int8, with what its kernel swallows: an Add of a bias, a Relu or Clip."""

    node: ir.Node
    output: ir.Value  # what leaves the kernel
    bias: ir.Node | None = None
    clip: ir.Node | None = None
    weighted: bool = False  # its second input is a weight


@dataclass(frozen=True)
class Plan:
    """What will be quantized. Values and nodes belong to the graph that was planned."""

    sites: tuple[Site, ...]
    moving: tuple[ir.Node, ...]
    stored: tuple[ir.Node, ...]
    tensors: dict[str, str]  # quantized tensor → its group, in order of the graph
    constants: tuple[tuple[ir.Node, int], ...]  # constant activations: (node, input position)
    observed: dict[str, tuple[str, ...]]  # group → the tensors whose values span its range
    changes: tuple[Change, ...] = field(default=(), repr=False)
    reads: Mapping[ir.Node, tuple[int, ...]] = field(default_factory=dict, repr=False)  # inputs that read codes

    @property
    def nodes(self) -> frozenset[ir.Node]:
        """Every node that computes on int8 codes."""
        return frozenset({site.node for site in self.sites} | set(self.moving))

    @property
    def observed_tensors(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for names in self.observed.values() for name in names))


def check_op_types(op_types: Iterable[str] | None) -> frozenset[str]:
    """The operator types to quantize; the default set for None.

    Raises:
        QuantizationError: a type that has no int8 kernel.
    """
    if op_types is None:
        return QUANTIZABLE - ON_REQUEST
    wanted = frozenset(op_types)
    for name in sorted(wanted - QUANTIZABLE):
        raise QuantizationError(f"op type {name!r} cannot be quantized; {nearest(name, QUANTIZABLE)}")
    return wanted


def plan_placement(
    graph: ir.Model, *, op_types: Iterable[str] | None = None, exclude: Collection[ir.Node] = frozenset()
) -> Plan:
    """Decide where `graph` (every value of which has a name) is quantized; changes nothing.

    Args:
        op_types: quantize only these; nodes that move values and clips follow on their own.
        exclude: nodes that stay float.
    """
    return Planner(graph, check_op_types(op_types), frozenset(exclude)).plan()


class Planner:
    def __init__(self, graph: ir.Model, op_types: frozenset[str], exclude: frozenset[ir.Node]) -> None:
        self.graph = graph.graph
        self.order = list(graph.graph)
        self.reasons: dict[ir.Node, str] = {}
        self.sites: dict[ir.Node, Site] = {}
        self.moving: set[ir.Node] = set()
        self.stored: list[ir.Node] = []
        for node in self.order:
            reason = refusal(node) or _choice(node, op_types, exclude)
            if reason:
                self.reasons[node] = reason
            elif node.op_type in STORED:
                self.stored.append(node)
            elif node.op_type in MOVING:
                self.moving.add(node)
            else:
                self.sites[node] = _site(node)
        for site in tuple(self.sites.values()):
            if site.bias is not None:
                self.sites.pop(site.bias, None)

    def plan(self) -> Plan:
        self._shrink()
        tensors = self._tensors()
        groups = self._groups(tensors)
        constants = tuple(
            (node, index) for node in self.sites for index in activation_inputs(node) if is_constant(node.inputs[index])
        )
        return Plan(
            sites=tuple(self.sites.values()),
            moving=tuple(node for node in self.order if node in self.moving),
            stored=tuple(self.stored),
            tensors=groups,
            constants=constants,
            observed=self._observed(groups),
            changes=self._changes(),
            reads={node: self._reads(node) for node in self.order if self._reads(node)},
        )

    def _reads(self, node: ir.Node) -> tuple[int, ...]:
        """Which inputs of a node read codes where they are there."""
        return activation_inputs(node) if node in self.sites or node in self.moving else ()

    # --- which nodes ---

    def _shrink(self) -> None:
        while True:
            self.produced = self._produced()
            out = [node for node in (*self.sites, *self.moving) if self._reason_against(node)]
            if not out:
                return
            for node in out:
                self.reasons[node] = self._reason_against(node)
            for node in out:
                self.sites.pop(node, None)
                self.moving.discard(node)

    def _produced(self) -> dict[ir.Value, ir.Node]:
        """Tensors that leave a node as int8 codes."""
        found = {site.output: node for node, site in self.sites.items() if self._gives_codes(site)}
        found |= {value: node for node in self.moving for value in node.outputs if self._wanted(value)}
        return found

    def _gives_codes(self, site: Site) -> bool:
        # MatMul and Gemm have kernels with a float result, which keep its precision where no reader wants codes.
        return site.node.op_type not in ("Gemm", "MatMul") or self._wanted(site.output)

    def _wanted(self, value: ir.Value) -> bool:
        return any(
            (use.node in self.sites or use.node in self.moving) and use.idx in activation_inputs(use.node)
            for use in value.uses()
        )

    def _reason_against(self, node: ir.Node) -> str:
        values = [node.inputs[index] for index in activation_inputs(node)]
        if all(value is None or is_constant(value) for value in values):
            return "it has no input that varies"
        if node.op_type in HEAVY:
            return ""
        if any(value is None or not (is_constant(value) or value in self.produced) for value in values):
            return "an input is float"
        outputs = [self.sites[node].output] if node in self.sites else node.outputs
        return "" if any(self._wanted(value) for value in outputs) else "its result is read in float"

    # --- which tensors ---

    def _tensors(self) -> list[ir.Value]:
        found: dict[ir.Value, None] = {}
        for node in self.order:
            if node in self.sites:
                for index in activation_inputs(node):
                    value = node.inputs[index]
                    if value is not None and not is_constant(value):
                        found[value] = None
                if self.sites[node].output in self.produced:
                    found[self.sites[node].output] = None
            elif node in self.moving:
                found |= {value: None for value in node.outputs if value in self.produced}
        return list(found)

    def _groups(self, tensors: list[ir.Value]) -> dict[str, str]:
        parent = {value: value for value in tensors}

        def root(value: ir.Value) -> ir.Value:
            while parent[value] is not value:
                value = parent[value]
            return value

        clips = {value: self._clip_of(value) for value in tensors}
        for node in self.order:
            if node in self.moving:
                for value in node.outputs:
                    if value in parent:
                        parent[value] = root(node.inputs[0])  # type: ignore[arg-type]  # has an input
            elif node in self.sites and node.op_type == "Concat" and self.sites[node].output in parent:
                inputs = [root(value) for value in node.inputs if value in parent]
                # A range shared with an unclipped tensor would no longer do the work of a Relu.
                if len({clips[value] for value in inputs}) == 1:
                    for value in (*inputs, self.sites[node].output):
                        parent[root(value)] = inputs[0]
        return {str(value.name): str(root(value).name) for value in tensors}

    def _clip_of(self, value: ir.Value) -> tuple[float, float]:
        site = self.sites.get(self.produced.get(value))  # type: ignore[arg-type]  # None is no key
        return (clip_bounds(site.clip) if site is not None and site.clip is not None else None) or _NO_CLIP

    def _observed(self, groups: dict[str, str]) -> dict[str, tuple[str, ...]]:
        """Of each group, the members that no other member's values include."""
        derived = {str(value.name) for node in self.moving for value in node.outputs}
        for node in self.sites:
            names = [str(value.name) for value in node.inputs if value is not None]
            output = str(self.sites[node].output.name)
            if node.op_type == "Concat" and all(groups.get(name) == groups.get(output, "") for name in names):
                derived.add(output)
        found: dict[str, tuple[str, ...]] = {}
        for name, group in groups.items():
            if name not in derived:
                found[group] = (*found.get(group, ()), name)
        return found

    # --- changes ---

    def _changes(self) -> tuple[Change, ...]:
        swallowed = {node for site in self.sites.values() for node in (site.bias, site.clip) if node is not None}
        changes = []
        for node in self.order:
            values = {"node": node.name or "", "op_type": node.op_type}
            if node in self.sites:
                changes.append(Change(layer_of(node), "runs in int8", values=values))
            elif node in self.stored:
                changes.append(Change(layer_of(node), "weights stored in int8, computed in float", values=values))
            elif node not in self.moving and node not in swallowed and _is_computation(node):
                changes.append(
                    Change(layer_of(node), "left in float", self.reasons.get(node, ""), skipped=True, values=values)
                )
        return tuple(changes)


def _choice(node: ir.Node, op_types: frozenset[str], exclude: frozenset[ir.Node]) -> str:
    if node in exclude:
        return "excluded by name"
    if node.op_type in MOVING or node.op_type in op_types:
        return ""
    if node.op_type in ON_REQUEST:
        return f"{node.op_type} is more exact in float; name it in op_types to have it in int8"
    return f"{node.op_type} is not among the op types to quantize"


def _site(node: ir.Node) -> Site:
    output, bias, clip = node.outputs[0], None, None
    if node.op_type == "MatMul" and has_weight(node):
        bias = _bias_add(node)
        output = bias.outputs[0] if bias is not None else output
    follower = _only_reader(output)
    # A Concat's output shares its inputs' range, which no clip may narrow.
    if follower is not None and follower.op_type in CLIPS and node.op_type != "Concat" and follower.inputs[0] is output:
        bounds = clip_bounds(follower)
        if bounds is not None and bounds[0] <= 0 <= bounds[1] and bounds[0] < bounds[1]:
            clip, output = follower, follower.outputs[0]
    return Site(node, output, bias, clip, has_weight(node))


def _bias_add(node: ir.Node) -> ir.Node | None:
    """The Add of a vector behind a MatMul, which the kernel takes as its bias."""
    add, weight = _only_reader(node.outputs[0]), node.inputs[1]
    if add is None or add.op_type != "Add" or weight is None or weight.shape is None or len(weight.shape) != 2:
        return None
    bias = next((value for value in add.inputs if value is not node.outputs[0]), None)
    array = constant_array(bias) if bias is not None else None
    return add if array is not None and array.shape == (weight.shape[1],) and array.dtype == "float32" else None


def _only_reader(value: ir.Value) -> ir.Node | None:
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def _is_computation(node: ir.Node) -> bool:
    """Worth a line in the report: computes floats, does not just move them."""
    return node.op_type not in MOVING | {"Constant", "ConstantOfShape"} and any(
        value.dtype in (None, ir.DataType.FLOAT, ir.DataType.FLOAT16) for value in node.outputs
    )
