"""Layers whose kernel is computed from parameters each time, made plain: the kernel as it comes out, stored.

    weight_norm, spectral_norm, any parametrization, standardized or scaled kernels, sums of branches (RepVGG)

    y = conv(x, f(θ), b)   with f(θ) a constant in eval mode   →   y = conv(x, W, b),  W = f(θ)

Exact in eval mode, whatever f is. Training afterwards moves W itself: f is gone, and with it what it held to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Interpreter, Node

from compress.metadata import remember_baked
from compress.pruning.trace import Call, module_of
from compress.shapes import plain_layer, replace_module
from compress.state import copied

KINDS = {"conv1d": "Conv1d", "conv2d": "Conv2d", "conv3d": "Conv3d", "linear": "Linear"}


def bake(module: nn.Module, program: ExportedProgram) -> tuple[nn.Module, tuple[str, ...]]:
    """Return a copy of `module` whose computed kernels are plain ones, and the names of those layers.

    A layer is a module that does nothing to its input but one convolution or linear map, with a kernel and a bias that
    depend on no input and on no chance. Others stay as they are.
    """
    found = dict(_layers(module, program))
    if not found:
        return module, ()
    values = _computed(module, program, {node for call in found.values() for node in _operands(call)})
    twin = copied(module)
    for path, call in found.items():
        weight, bias = (values[item] if item is not None else None for item in _operands(call, every=True))
        assert weight is not None
        layer = plain_layer(_config(call, weight, bias))
        with torch.no_grad():
            layer.weight.copy_(weight)
            if bias is not None:
                layer.bias.copy_(bias)
        parameter = next(twin.get_submodule(path).parameters())
        layer.to(parameter.device, parameter.dtype).requires_grad_(parameter.requires_grad)
        replace_module(twin, path, layer)
        remember_baked(layer, _config(call, weight, bias))
    return twin, tuple(found)


def _layers(module: nn.Module, program: ExportedProgram) -> Iterator[tuple[str, Call]]:
    fed = _depends_on_inputs(program)
    graph = program.graph_module.graph
    random = {node for node in graph.nodes if _is_random(node)}
    direct = {node for node in graph.nodes if node.op == "placeholder"}
    inside: dict[str, list[Node]] = {}
    for node in graph.nodes:
        if node.op == "call_function" and node in fed and node.users:
            for path in _paths(node):
                inside.setdefault(path, []).append(node)
    for path, nodes in inside.items():
        if not path or len(nodes) != 1 or module_of(nodes[0]) != path:
            continue
        node = nodes[0]
        call = (
            Call(node, node.target, node.args, node.kwargs) if isinstance(node.target, torch._ops.OpOverload) else None
        )
        if call is None or call.name not in KINDS or not isinstance(call.arg(1), Node) or call.arg(1) in direct:
            continue
        operands = _operands(call)
        known = all(item not in fed and not random & _ancestors(item) for item in operands)
        if known and next(module.get_submodule(path).parameters(), None) is not None:
            yield path, call


def _operands(call: Call, every: bool = False) -> list[Any]:
    """The kernel and the bias of a call."""
    found = [call.arg(1), call.arg("bias", None)]
    return found if every else [item for item in found if item is not None]


def _depends_on_inputs(program: ExportedProgram) -> set[Node]:
    given = set(program.graph_signature.user_inputs)
    fed: set[Node] = set()
    for node in program.graph_module.graph.nodes:
        if node.name in given if node.op == "placeholder" else any(item in fed for item in node.all_input_nodes):
            fed.add(node)
    return fed


def _is_random(node: Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags


def _ancestors(node: Node) -> set[Node]:
    found: set[Node] = set()
    left = [node]
    while left:
        item = left.pop()
        if item not in found:
            found.add(item)
            left.extend(item.all_input_nodes)
    return found


def _paths(node: Node) -> set[str]:
    stack = node.meta.get("nn_module_stack") or {}
    return {path.split("@")[0] for path, _ in stack.values()}


def _computed(module: nn.Module, program: ExportedProgram, wanted: set[Node]) -> dict[Node, Tensor]:
    """Run what the wanted values are made of, and nothing else."""
    state: dict[str, Any] = {**program.constants, **dict(module.named_buffers(remove_duplicate=False))}
    state.update(module.named_parameters(remove_duplicate=False))
    specs = {getattr(spec.arg, "name", None): spec.target for spec in program.graph_signature.input_specs}
    needed = set().union(*(_ancestors(node) for node in wanted))
    interpreter = Interpreter(program.graph_module)
    env = interpreter.env
    with torch.no_grad():
        for node in program.graph_module.graph.nodes:
            if node not in needed:
                continue
            if node.op == "placeholder":
                env[node] = state[str(specs[node.name])]
            else:
                env[node] = interpreter.run_node(node)
    return {node: env[node].detach() for node in wanted}


def _config(call: Call, weight: Tensor, bias: Tensor | None) -> dict[str, Any]:
    """The sizes of the plain layer, by the names of its constructor."""
    kind = KINDS[call.name]
    sizes: dict[str, Any] = {"kind": kind, "bias": bias is not None}
    if kind == "Linear":
        return sizes | {"in_features": weight.shape[1], "out_features": weight.shape[0]}
    groups = call.arg("groups", 1)
    listed: Callable[[Any], Any] = lambda value: value if isinstance(value, str) else [int(item) for item in value]  # noqa: E731
    space = weight.dim() - 2
    moved = {name: listed(call.arg(name)) for name in ("stride", "padding", "dilation")}
    moved = {
        name: value * space if isinstance(value, list) and len(value) == 1 else value for name, value in moved.items()
    }
    channels = {"in_channels": weight.shape[1] * groups, "out_channels": weight.shape[0], "groups": groups}
    return sizes | channels | {"kernel_size": list(weight.shape[2:])} | moved
