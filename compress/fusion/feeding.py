"""Which layer feeds each batch-norm, read from the exported or traced program."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from compress.batches import Batch, call
from compress.errors import InputError, ModelError, first_words
from compress.state import evaluating, quietly
from compress.tracing import traced, tracing

# What leaves every value as it is in eval mode, so that a batch-norm may lie behind it.
_TRANSPARENT = ("aten.clone.", "aten.contiguous.", "aten.detach.", "aten.alias.")
_LAYER_CALLS = ("aten.conv1d.", "aten.conv2d.", "aten.conv3d.", "aten.conv_transpose", "aten.linear.")


@dataclass(frozen=True)
class Found:
    """A batch-norm, the layer whose output it normalizes, or why there is none that it could join."""

    batchnorm: str
    layer: str | None = None
    refusal: str = ""


def find_batchnorms(module: nn.Module, names: Sequence[str], inputs: Batch | None) -> list[Found]:
    """Look up each batch-norm of `names` in the program of `module`, by torch.export, else by symbolic tracing.

    Raises:
        InputError: the module rejects `inputs`.
        ModelError: neither way can read the module.
    """
    if not names:
        return []
    reason = "no example_inputs were given"
    if inputs is not None:
        _check_runs(module, inputs)
        try:
            return _by_export(module, names, inputs)
        except Exception as error:
            reason = f"torch.export: {first_words(error)}"
    try:
        return _by_tracing(module, names)
    except Exception as error:
        raise ModelError(
            f"cannot read the program of {type(module).__name__} ({reason}; torch.fx: {first_words(error)}); "
            "give example_inputs that it accepts, or fuse its parts one by one"
        ) from error


def _check_runs(module: nn.Module, inputs: Batch) -> None:
    try:
        with evaluating(module):
            call(module, inputs)
    except Exception as error:
        shapes = ", ".join(str(tuple(x.shape)) for x in inputs.values)
        raise InputError(f"{type(module).__name__} rejects inputs of shape {shapes}: {first_words(error)}") from error


def _by_export(module: nn.Module, names: Sequence[str], inputs: Batch) -> list[Found]:
    with tracing(), evaluating(module), quietly():
        positional, named = inputs.map(lambda x: x.detach().clone()).arguments(module)
        program = traced(module, positional, named, strict=False)
    signature = program.graph_signature
    owned = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    # Two names of one module share its tensors; the export knows them by one of the two.
    same = {id(tensor): name for name, tensor in [*module.named_parameters(), *module.named_buffers()]}
    calls: dict[str, list[fx.Node]] = {}
    for node in program.graph.nodes:
        if node.op == "call_function" and "batch_norm" in str(node.target):
            mean = _owner(node.args[3], owned) if len(node.args) > 3 else None
            weight = _owner(node.args[1], owned)
            calls.setdefault((mean or weight or "").rpartition(".")[0], []).append(node)
    return [_exported(name, calls.get(_own_name(module, name, same), []), owned) for name in names]


def _own_name(module: nn.Module, name: str, same: dict[int, str]) -> str:
    batchnorm = module.get_submodule(name)
    for attribute in ("running_mean", "weight"):
        tensor = getattr(batchnorm, attribute, None)
        if isinstance(tensor, Tensor):
            return same.get(id(tensor), f"{name}.").rpartition(".")[0]
    return name


def _exported(name: str, calls: list[fx.Node], owned: dict[str, str]) -> Found:
    if not calls:
        # Without statistics or weights of its own nothing in the program tells whose normalization it is.
        return Found(name, refusal="it is not executed on these inputs, or keeps neither statistics nor weights")
    if len(calls) > 1:
        return Found(name, refusal=f"it is used {len(calls)} times")
    call = calls[0]
    if len(call.args) > 5 and call.args[5] is True:
        return Found(name, refusal="it normalizes with the statistics of the batch, also in eval mode")
    source: Any = call.args[0]
    while _passes_through(source) and len(source.users) == 1:
        source = source.args[0]
    if not isinstance(source, fx.Node) or not str(source.target).startswith(_LAYER_CALLS):
        return Found(name, refusal=f"its input comes from {_described(source)}, not from a convolution or linear layer")
    weight = _owner(source.args[1], owned)
    if weight is None:
        return Found(name, refusal="the weight of the layer before it is computed while running")
    layer = weight.rpartition(".")[0]
    if len(source.args[1].users) > 1:  # type: ignore[union-attr]  # a node: matched above
        return Found(name, refusal=f"{layer} is used more than once, or shares its weight")
    others = [user.name for user in source.users if user is not call and not _passes_through(user)]
    if others or len(source.users) > 1:
        return Found(name, refusal=f"the output of {layer} is also read by {', '.join(others) or 'other operations'}")
    if str(source.target).startswith("aten.linear.") and source.meta["val"].ndim != 2:
        return Found(name, refusal=f"it normalizes dimension 1, which is not the outputs of {layer}")
    return Found(name, layer)


def _owner(node: Any, owned: dict[str, str]) -> str | None:
    return owned.get(node.name) if isinstance(node, fx.Node) and node.op == "placeholder" else None


def _passes_through(node: Any) -> bool:
    if not isinstance(node, fx.Node) or node.op != "call_function":
        return False
    dropout = str(node.target) == "aten.dropout.default" and node.args[2] is False
    return dropout or str(node.target).startswith(_TRANSPARENT)


def _described(node: Any) -> str:
    if not isinstance(node, fx.Node):
        return "a constant"
    if node.op == "placeholder":
        return "the model's input"
    if node.target is operator.getitem:
        return "one of several results"
    return str(node.target).removeprefix("aten.").split(".")[0]


def _by_tracing(module: nn.Module, names: Sequence[str]) -> list[Found]:
    with evaluating(module):
        graph = fx.Tracer().trace(module)
    uses: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            uses.setdefault(str(node.target), []).append(node)
    shared = {id(module.get_submodule(name)): name for name in uses}
    return [
        _traced(module, name, uses.get(shared.get(id(module.get_submodule(name)), name), []), uses) for name in names
    ]


def _traced(module: nn.Module, name: str, calls: list[fx.Node], uses: dict[str, list[fx.Node]]) -> Found:
    if not calls:
        return Found(name, refusal="it is not executed")
    if len(calls) > 1:
        return Found(name, refusal=f"it is used {len(calls)} times")
    source = calls[0].args[0]
    if not isinstance(source, fx.Node) or source.op != "call_module":
        return Found(name, refusal="its input does not come straight from a convolution or linear layer")
    layer = str(source.target)
    if isinstance(module.get_submodule(layer), nn.Linear):
        return Found(name, refusal=f"without example_inputs the shape of the output of {layer} is not known")
    if len(uses[layer]) > 1 or _shares_weight(module, layer):
        return Found(name, refusal=f"{layer} is used more than once, or shares its weight")
    if len(source.users) > 1:
        return Found(name, refusal=f"the output of {layer} is also read by other operations")
    return Found(name, layer)


def _shares_weight(module: nn.Module, layer: str) -> bool:
    weight = getattr(module.get_submodule(layer), "weight", None)
    return sum(other is weight for _, other in module.named_parameters(remove_duplicate=False)) > 1
