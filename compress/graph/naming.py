"""Names of nodes as users know them: module paths, patterns, the nearest name for a typo."""

from __future__ import annotations

import ast
import fnmatch
from collections.abc import Iterable

import onnx_ir as ir

from compress.errors import InputError, nearest

_SCOPES = "pkg.torch.onnx.name_scopes"  # "['', 'layer1', 'layer1.0', 'conv2d_3']": modules, then the operation

SIGNATURE_KIND = "pkg.torch.export.graph_signature.InputSpec.kind"  # what the exporter notes on an initializer
PARAMETER = "PARAMETER"


def name_after_modules(graph: ir.Model) -> None:
    """Name nodes of a fresh export after the module they come from ("layer1.0.conv1/Conv"), in place.

    Tensors between them get the node's name, and the exporter's notes (source paths, stack traces), which would
    otherwise ship inside the file, are dropped. Names of inputs, outputs and weights stay.
    """
    used: set[str] = {value.name or "" for value in (*graph.graph.inputs, *graph.graph.outputs)}
    used |= set(graph.graph.initializers)
    for node in graph.graph.all_nodes():
        scope = _module_path(node)
        name = _free(f"{scope}/{node.op_type}" if scope else node.op_type, used)
        node.name = name
        node.metadata_props.clear()
        node.doc_string = None
        for index, value in enumerate(node.outputs):
            value.metadata_props.clear()
            if value.name and not value.is_graph_output():
                value.name = name if index == 0 else _free(f"{name}.{index}", used)
    for value in (*graph.graph.inputs, *graph.graph.initializers.values()):
        # A parameter of one number (the β of a Swish) would pass for a constant without its note.
        scalar = value.shape is not None and value.shape.is_static() and value.shape.numpy() in ((), (1,))
        kind = value.metadata_props.get(SIGNATURE_KIND) if scalar else None
        value.metadata_props.clear()
        if kind == PARAMETER:
            value.metadata_props[SIGNATURE_KIND] = kind
    for part in graph.graphs():
        part.metadata_props.clear()
    graph.metadata_props.clear()


def layer_of(node: ir.Node) -> str:
    """The module path of a node that `name_after_modules` named, else the node's own name."""
    return (node.name or "").rsplit("/", 1)[0] or node.name or ""


def names_of(node: ir.Node) -> tuple[str, ...]:
    """Every name under which a user may mean this node: node, module, weights, outputs."""
    names = [node.name or "", layer_of(node)]
    for value in node.inputs:
        if value is not None and value.is_initializer() and value.name:
            names += [value.name, value.name.removesuffix(".weight").removesuffix(".bias")]
    names += [value.name for value in node.outputs if value.name]
    return tuple(dict.fromkeys(name for name in names if name))


def matching_nodes(graph: ir.Model, names: Iterable[str], *, option: str = "exclude") -> set[ir.Node]:
    """The nodes meant by `names`: a node, a module (with everything inside it), a weight, or a pattern with `*`.

    Raises:
        InputError: a name that means none; the nearest one is suggested.
    """
    found = nodes_by_name(graph, names)
    for name, meant in found.items():
        if not meant:
            everything = {other for node in graph.graph.all_nodes() for other in (layer_of(node), *names_of(node))}
            raise InputError(f"{option} {name!r} matches no node of the graph; {nearest(name, everything)}")
    return set().union(*found.values())


def nodes_by_name(graph: ir.Model, names: Iterable[str]) -> dict[str, set[ir.Node]]:
    """The nodes that each of `names` means, as in `matching_nodes`; an empty set where it means none."""
    names = tuple(names)
    known = {node: names_of(node) for node in graph.graph.all_nodes()} if names else {}
    return {name: {node for node, own in known.items() if any(_means(name, other) for other in own)} for name in names}


def _means(name: str, other: str) -> bool:
    if any(sign in name for sign in "*?["):
        return fnmatch.fnmatchcase(other, name)
    return other == name or other.startswith((f"{name}.", f"{name}/"))


def _module_path(node: ir.Node) -> str:
    for value in node.inputs:  # a convolution that swallowed its batch-norm is still the convolution
        if value is not None and value.is_initializer() and (value.name or "").endswith(".weight"):
            return (value.name or "").removesuffix(".weight")
    try:
        scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
    except (SyntaxError, ValueError):
        return ""
    return next((str(scope) for scope in reversed(scopes[:-1]) if scope and not str(scope).startswith("_empty_nn")), "")


def _free(name: str, used: set[str]) -> str:
    candidate, index = name, 0
    while candidate in used:
        index += 1
        candidate = f"{name}_{index}"
    used.add(candidate)
    return candidate
