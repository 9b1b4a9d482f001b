"""Which channels of a model belong together: the exported program, run on labels."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx import GraphModule, Node

from compress.batches import Batch
from compress.errors import ExportError
from compress.pruning.labels import FEW_GROUPS, FIXED, NONE, core, shrink, varying
from compress.pruning.rules import created, pad, pointwise, rule_for, same
from compress.pruning.trace import Call, Labelled, Trace, Work, lock
from compress.state import evaluating, own_buffers, slow_attention
from compress.tracing import traced, tracing

ALL_THERE_IS = "all there is of"  # begins the reason of channels that are one class, which can only go whole


@dataclass(frozen=True)
class Family:
    """Classes of channels that the same layers make: one choice of "how many" for all of them.

    `classes` are the roots that may be removed; `total` counts those that must stay as well. `width` is how many
    channels of the widest layer one class stands for (a head, or a group of a convolution, is more than one).
    """

    name: str
    producers: tuple[tuple[str, int], ...]
    classes: np.ndarray
    total: int
    width: int
    axis_width: int = 0

    @property
    def channels(self) -> int:
        """Those of the widest layer, also where they must stay."""
        return self.total * self.width


@dataclass(frozen=True)
class Tie:
    """Two families with equal counts: forward reads the width of attention from its input's width.

    The stream keeps `unit` channels for every class that the follower (heads) keeps.
    """

    stream: np.ndarray
    heads: np.ndarray
    unit: int


@dataclass(frozen=True)
class Channels:
    """The result of the propagation over one module."""

    shapes: dict[str, torch.Size]
    parameters: frozenset[str]  # names of those that are trained, shared ones once
    root: np.ndarray
    axes: dict[tuple[str, int], np.ndarray]  # roots of a parameter's indices along a dimension
    elements: dict[str, np.ndarray]  # roots of a parameter's elements
    owners: list[tuple[np.ndarray, np.ndarray]]
    families: list[Family]
    locked: dict[int, str]
    ties: list[Tie]
    work: list[Work]
    program: ExportedProgram
    labels: dict[Node, Any]  # of every value of the program
    reduced: frozenset[Node]  # operations that sum over channels
    producers: list[tuple[str, int]]
    made_by_slices: list[np.ndarray]
    heads: list[np.ndarray]  # for each attention, the roots of its heads
    element_labels: dict[str, np.ndarray]  # labels, not roots
    whole_groups: bool = True  # what goes of a convolution of many groups; else the same place of every group

    def gone(self, removed: np.ndarray) -> np.ndarray:
        """Return, for every label, whether it is removed with the classes in `removed`."""
        flags = np.zeros(self.root.size + 1, dtype=bool)  # one more, for NONE = -1
        flags[removed] = True
        flags[FIXED] = False
        return np.append(flags[self.root], False)

    def gone_elements(self, removed: np.ndarray) -> np.ndarray:
        """The same, with the elements of composed and sliced kernels that go with their rows and columns.

        With them goes what is of their class, unless a scale made one class of several rows or columns.
        """
        gone = self.gone(removed)
        flagged = np.zeros_like(gone)
        for owner, owned in self.owners:
            classes = self.root[owned.reshape(len(owner), -1)]
            flagged[np.unique(owned[gone[owner]])] = True
            if np.unique(classes).size == sum(np.unique(row).size for row in classes):
                flagged[np.isin(np.append(self.root, NONE), classes[gone[owner]])] = True
        flagged[NONE] = False
        return gone | flagged

    def without(self, reasons: Mapping[int, str]) -> Channels:
        """The same, with more classes locked."""
        locked = {**self.locked, **reasons}
        return _with_families(self, locked)


def export_program(module: nn.Module, inputs: Batch, *, training: bool = False) -> ExportedProgram:
    """Export without decompositions, the attention fast path off (it would hide heads in one operator).

    Raises:
        ExportError: `torch.export` refuses; its reason is in the message.
    """
    try:
        if training:
            module = own_buffers(module)  # tracing counts batches there
        with tracing(), slow_attention(), evaluating(module), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if training:
                for part in module.modules():
                    part.training = True
            positional, named = inputs.arguments(module)
            return traced(module, positional, named, strict=False)
    except Exception as error:
        line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ExportError(
            f"torch.export cannot take {type(module).__name__}: {line[:300]}; check the example inputs, and keep Python "
            "branches on tensor values out of forward (or prune with masks: remove_channels=False)"
        ) from error


def find_channels(module: nn.Module, inputs: Batch | tuple[Tensor, ...]) -> Channels:
    """Propagate labels through the module; return the families of channels, and why others must stay.

    Whole groups of a grouped convolution go at once. A channel shuffle mixes groups, so that then nothing could go;
    where that is so, and the same place of every group can, that is what goes.

    Raises:
        ExportError: the module cannot be exported.
    """
    inputs = Batch.of(inputs)
    found = _propagated(module, inputs, whole_groups=True)
    groups = any(_many_groups(node) for node in found.program.graph_module.graph.nodes)
    if groups and any(reason.startswith(ALL_THERE_IS) for reason in found.locked.values()):
        other = _propagated(module, inputs, whole_groups=False)
        if _removable(other) > _removable(found):
            return other
    return found


def _many_groups(node: Node) -> bool:
    groups = next((item for item in (node.kwargs.get("groups"), *node.args[6:7]) if isinstance(item, int)), 1)
    return node.op == "call_function" and groups >= FEW_GROUPS


def _removable(channels: Channels) -> int:
    return sum(family.classes.size * family.width for family in channels.families)


def _propagated(module: nn.Module, inputs: Batch, *, whole_groups: bool) -> Channels:
    state = _state(module)
    shapes = {name: value.shape for name, value in state.items()}
    trace, names = Trace(shapes, whole_groups), _first_names(state)
    program = export_program(module, inputs)
    labels = _run_program(trace, program, names)
    work = list(trace.work)
    used = {name for name, _ in trace.axes} | set(trace.element_labels)
    unused = {name for name, _ in module.named_parameters()} - used
    if unused:  # auxiliary heads run in training only, and read the same channels
        try:
            _run_program(trace, export_program(module, inputs, training=True), names)
        except ExportError:
            for name in unused:
                for dim in range(len(shapes[name])):
                    trace.axis(Labelled(None, shapes[name], name), dim)
    _resolve(trace)
    root = trace.store.flush()
    locked = trace.store.locked()
    found = Channels(
        shapes=shapes,
        parameters=frozenset(name for name, _ in module.named_parameters()),
        root=root,
        axes={key: root[vector.numpy()] for key, vector in trace.axes.items()},
        elements={name: root[value.numpy()] for name, value in trace.element_labels.items()},
        owners=[(a.numpy(), b.numpy()) for a, b in trace.owners],
        families=[],
        locked=locked,
        ties=[],
        work=work,  # without what runs in training only
        program=program,
        labels=labels,
        reduced=frozenset(trace.reduced),
        producers=sorted(trace.producers),
        made_by_slices=[root[vector.numpy()] for vector in trace.made_by_slices],
        heads=[_roots_of(trace, a, b) for _, a, b in trace.heads],
        element_labels={name: value.numpy() for name, value in trace.element_labels.items()},
        whole_groups=whole_groups,
    )
    return _with_families(found, locked)


def _roots_of(trace: Trace, *labels: Tensor) -> np.ndarray:
    roots = np.unique(np.concatenate([trace.store.roots(core(item)).numpy().reshape(-1) for item in labels]))
    return roots[roots > FIXED]


def _state(module: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers by name, also those that the state dict leaves out, shared ones under every name."""
    found: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
    found.update(module.named_buffers(remove_duplicate=False))
    return found


def _first_names(state: Mapping[str, Tensor]) -> dict[str, str]:
    """One name for each tensor: the first of those under which the module holds it."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(value), name) for name, value in state.items()}


# -- running the program ----------------------------------------------------------------------------------------
def _run_program(trace: Trace, program: ExportedProgram, names: Mapping[str, str]) -> dict[Node, Any]:
    values: dict[str, Any] = {}
    for spec in program.graph_signature.input_specs:
        name = getattr(spec.arg, "name", None)
        if name is None:
            continue
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            tensor = program.state_dict.get(spec.target, program.constants.get(spec.target))
            parameter_name = names.get(spec.target, spec.target)
            floating = tensor is not None and tensor.is_floating_point() and parameter_name in trace.shapes
            made_of = frozenset([parameter_name] if spec.kind == InputKind.PARAMETER else [])
            values[name] = Labelled(None, tensor.shape, parameter_name, made_of) if floating else tensor
        elif spec.kind == InputKind.USER_INPUT:
            values[name] = None  # from the shape of the node
        else:
            values[name] = program.constants.get(spec.target)
    env: dict[Node, Any] = {}
    with torch.no_grad():
        outputs = _run_graph(trace, program.graph_module, values, env)
    for spec, value in zip(program.graph_signature.output_specs, outputs):
        if spec.kind == OutputKind.USER_OUTPUT and isinstance(value, Labelled):
            trace.store.lock(trace.labels(value), "output of the model")
    return env


def _run_graph(trace: Trace, graph: GraphModule, inputs: dict[str, Any], env: dict[Node, Any]) -> list[Any]:
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            value = inputs.get(node.name)
            meta = node.meta.get("val")
            if value is None and isinstance(meta, Tensor):
                value = Labelled(torch.full((1,) * meta.dim(), FIXED).expand(meta.shape), meta.shape)
            env[node] = value
        elif node.op == "get_attr":
            env[node] = _attribute(graph, node.target)
        elif node.op == "call_function":
            args = torch.fx.node.map_arg(node.args, lambda item: env[item])
            kwargs = torch.fx.node.map_arg(node.kwargs, lambda item: env[item])
            env[node] = _call(trace, node, args, kwargs, env)
        elif node.op == "output":
            found = torch.fx.node.map_arg(node.args[0], lambda item: env[item])
            return list(found) if isinstance(found, (tuple, list)) else [found]
    return []


def _attribute(graph: GraphModule, name: str) -> Any:
    value: Any = graph
    for part in name.split("."):
        value = getattr(value, part)
    return value


def _call(trace: Trace, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any], env: dict[Node, Any]) -> Any:
    if node.target is operator.getitem:
        return args[0][args[1]] if isinstance(args[0], (tuple, list)) else args[0]
    graphs = [item for item in args if isinstance(item, GraphModule)]
    if graphs:  # a region under no_grad or autocast
        values = [item for item in args[list(args).index(graphs[0]) + 1 :]]
        names = [item.name for item in graphs[0].graph.nodes if item.op == "placeholder"]
        return _run_graph(trace, graphs[0], dict(zip(names, values)), env)
    if not isinstance(node.target, torch._ops.OpOverload):
        return None
    if not node.target._schema.returns and not node.target._schema.is_mutable:
        return None  # an assertion (before each cast: of the type, the device): it reads no values
    call = Call(node, node.target, args, kwargs)
    if not any(True for _ in call.labelled(every=True)):
        return _known(call)
    try:
        result = rule_for(call)(trace, call)
    except Exception:  # a shape or an argument that a rule does not foresee: as for an unknown operator
        result = lock(trace, call)
    if rule_for(call) is created:
        return result
    return _wrap(result, _moved_parameter(call), _made_of(call), _is_elementwise(call))


def _known(call: Call) -> Any:
    """Constants are computed as they are: index tables and masks are made of them."""
    value = call.node.meta.get("val")
    if isinstance(value, Tensor) and value.numel() > 50_000_000:
        return torch.zeros((), dtype=value.dtype).expand(value.shape)
    return call.run(lambda item: item)


_MOVES = frozenset(
    [
        "view",
        "reshape",
        "permute",
        "transpose",
        "t",
        "swapaxes",
        "flatten",
        "unflatten",
        "squeeze",
        "unsqueeze",
        "slice",
        "narrow",
        "select",
        "chunk",
        "split",
        "split_with_sizes",
        "unbind",
        "contiguous",
        "clone",
        "alias",
        "detach",
        "cat",
        "to",
        "_to_copy",
    ]
)


def _moved_parameter(call: Call) -> str | None:
    """Name the parameter if the call only rearranges the elements of one."""
    names = {item.param for item in call.labelled(every=True)}
    return next(iter(names)) if call.name in _MOVES and len(names) == 1 else None


def _is_elementwise(call: Call) -> bool:
    """Does the call compute each element from one of each operand, which parameters made in the same way?"""
    if not (call.name in _MOVES or rule_for(call) in (pointwise, same, pad)):
        return False
    return all(item.param is not None or item.elementwise for item in call.labelled(every=True))


def _made_of(call: Call) -> frozenset[str] | None:
    """Name the parameters that the call computes from, if from nothing else."""
    found: set[str] = set()
    for operand in call.labelled(every=True):
        if operand.made_of is None:
            return None
        found |= operand.made_of
    return frozenset(found)


def _wrap(result: Any, param: str | None, made_of: frozenset[str] | None, elementwise: bool) -> Any:
    if isinstance(result, (tuple, list)):
        return type(result)(_wrap(item, param, made_of, elementwise) for item in result)
    return Labelled(result, result.shape, param, made_of, elementwise) if isinstance(result, Tensor) else result


# -- after the run ----------------------------------------------------------------------------------------------
def _resolve(trace: Trace) -> None:
    """Settle what could not be decided while running, until nothing changes (every pass only unites)."""
    store = trace.store
    settled: set[int] = set()
    while True:
        before = store.flush().copy()
        for place, (narrow, wide) in enumerate(trace.broadcasts):
            a, b = store.roots(narrow), store.roots(wide)
            dims = varying(shrink(a.contiguous()))
            if not dims:
                dims = varying(a)
            if all(b.shape[dim] == 1 or _constant(b, dim) for dim in dims):
                if place not in settled:
                    store.lock(narrow, "scales channels of which only whole heads go")
                    settled.add(place)
            else:
                store.unite(a, b)
        _complete_tables(trace)
        _join_kernels(trace)
        store.flush()
        for _, labels in trace.boxes:
            _keep_box(trace, labels)
        if np.array_equal(before, store.flush()):
            return


def _join_kernels(trace: Trace) -> None:
    """Where a scale made each row of a composed kernel one class (or each column), it goes with the channel itself."""
    for rows, columns, elements in trace.composed:
        roots = trace.store.roots(elements).flatten(2)
        along_rows, along_columns = roots[:, :1, :1], roots[:1, :, :1]
        if roots.shape[1] > 1 and bool((roots == along_rows).all()):
            trace.store.unite(rows, along_rows.flatten())
        elif roots.shape[0] > 1 and bool((roots == along_columns).all()):
            trace.store.unite(columns, along_columns.flatten())


def _complete_tables(trace: Trace) -> None:
    """A table of positions is longer than the example: rows that were not read lose the channels of those that were.

    Where all that was read of every slice along one dimension goes together, the rest of the slice goes with it.
    """
    root, used = trace.store.flush(), trace.store.used()
    for _, elements in trace.owners:
        used[elements.numpy()] = True
    for table in trace.element_labels.values():
        read = used[table.numpy()]
        if read.all():
            continue
        roots = root[table.numpy()]
        dims = [dim for dim in range(roots.ndim) if roots.shape[dim] > 1 and _slices_agree(roots, read, dim)]
        if not dims:
            continue
        along = max(dims, key=lambda dim: read.any(_others(read, dim)).mean())
        classes = np.where(read, roots, NONE).max(_others(read, along), keepdims=True)
        trace.store.unite(torch.from_numpy(classes), table)


def _slices_agree(roots: np.ndarray, read: np.ndarray, dim: int) -> bool:
    """Is all that was read of each slice of one class?"""
    highest = np.where(read, roots, NONE).max(_others(read, dim), keepdims=True)
    return bool(((roots == highest) | ~read).all())


def _others(array: np.ndarray, dim: int) -> tuple[int, ...]:
    return tuple(other for other in range(array.ndim) if other != dim)


def _constant(labels: Tensor, dim: int) -> bool:
    return bool((labels == labels.narrow(dim, 0, 1)).all())


def _keep_box(trace: Trace, labels: Tensor) -> None:
    """Where a dimension was split in two, removal must leave a box: channels vary along one of the two only."""
    roots = core(shrink(trace.store.roots(labels)))
    dims = varying(roots)
    if len(dims) < 2:
        return
    for keep in dims:
        rest = [dim for dim in dims if dim != keep]
        widest = roots.amax(rest, keepdim=True)
        if bool(((roots == widest) | (roots == NONE)).all()):
            return
    keep = max(dims, key=lambda dim: (roots.shape[dim], dim))
    rest = [dim for dim in dims if dim != keep]
    trace.store.unite(roots.amax(rest, keepdim=True), roots)
    trace.store.flush()


def _with_families(found: Channels, locked: dict[int, str]) -> Channels:
    """Collect removable classes by the set of layers that make them."""
    locked = dict(locked)
    for (name, dim), roots in found.axes.items():
        if np.unique(roots).size == 1 and roots[0] != FIXED and roots.size:
            locked.setdefault(int(roots[0]), f"{ALL_THERE_IS} {name} along dimension {dim}")
    members: dict[int, list[int]] = {}
    producers = found.producers
    for place, key in enumerate(producers):
        for label in np.unique(found.axes[key]).tolist():
            members.setdefault(label, []).append(place)
    for place, roots in enumerate(found.made_by_slices, start=len(producers)):
        for label in np.unique(roots).tolist():
            members.setdefault(label, []).append(place)
    by_signature: dict[tuple[int, ...], list[int]] = {}
    for label, places in members.items():
        by_signature.setdefault(tuple(places), []).append(label)
    families = []
    for signature, labels in by_signature.items():
        free = np.array([label for label in labels if label not in locked and label != FIXED], dtype=np.int64)
        made = [producers[place] for place in signature if place < len(producers)]
        axis = max((found.axes[key] for key in made), key=len, default=np.array(labels))
        width = int(np.isin(axis, labels).sum()) // max(len(labels), 1) or 1
        name = made[0][0].rpartition(".")[0] or made[0][0] if made else f"slices {signature}"
        families.append(Family(name, tuple(made), free, len(labels), width, len(axis)))
    return replace(found, families=families, locked=locked, ties=_ties(found))


def _ties(found: Channels) -> list[Tie]:
    """Find attention as wide as its input: forward then computes head counts or widths from the input's."""
    ties, seen = [], set()
    for heads in found.heads:
        for name, dim in found.producers:
            roots = found.axes[name, dim]
            reads = found.axes.get((name, 1 - dim))
            if reads is None or not np.isin(roots, heads).all():
                continue
            _, counts = np.unique(roots, return_counts=True)
            for factor in (1, 3, 2):  # q, k and v in one layer, or two of them
                unit = int(counts[0]) // factor
                if unit * heads.size == reads.size and int(counts[0]) % factor == 0 and len(set(counts.tolist())) == 1:
                    key = (np.unique(reads).tobytes(), heads.tobytes())
                    if key not in seen:
                        seen.add(key)
                        ties.append(Tie(np.unique(reads), heads, unit))
                    break
    return ties
