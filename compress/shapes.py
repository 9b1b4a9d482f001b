"""Layers whose attributes follow the shapes of their parameters."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from compress.state import copied

# A word in the name of a module's own attribute that makes it a count of channels or of heads.
WIDTH_WORDS = (
    "dim",
    "channel",
    "feature",
    "hidden",
    "embed",
    "plane",
    "width",
    "inner",
    "inp",
    "oup",
    "d_model",
    "head_size",
)
HEAD_WORDS = ("head",)


def replace_parameters(module: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Put tensors of other shapes in place of parameters and buffers; then let every layer's attributes follow.

    A parameter shared by two layers stays shared. Flags (`requires_grad`) stay as they were.
    """
    before = {name: tuple(value.shape) for name, value in _named(module)}
    known: dict[int, nn.Parameter] = {}
    for path, owner in module.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        for name, parameter in list(owner._parameters.items()):
            if parameter is None or prefix + name not in values:
                continue
            if id(parameter) not in known:
                known[id(parameter)] = nn.Parameter(values[prefix + name], requires_grad=parameter.requires_grad)
                known[id(known[id(parameter)])] = known[id(parameter)]
            owner._parameters[name] = known[id(parameter)]
        for name, buffer in list(owner._buffers.items()):
            if buffer is not None and prefix + name in values:
                owner._buffers[name] = values[prefix + name]
    after = {name: tuple(value.shape) for name, value in _named(module)}
    for path, part in module.named_modules():
        if fit_layer(part):
            continue
        prefix = f"{path}." if path else ""
        pairs = [(name[len(prefix) :], before[name], after[name]) for name in before if name.startswith(prefix)]
        if any(old != new for _, old, new in pairs):
            fit_attributes(part, pairs)


class Skip(nn.Identity):
    """In the place of a block that takes more than its input (a mask): the input comes out, the rest is not looked at."""

    def forward(self, input: Any, *args: Any, **kwargs: Any) -> Any:
        return input


def skip_for(part: nn.Module) -> nn.Module:
    """Make what stays in the place of a removed block."""
    return nn.Identity() if len(inspect.signature(part.forward).parameters) == 1 else Skip()


def replace_module(module: nn.Module, name: str, new: nn.Module) -> None:
    """Put `new` where the submodule `name` is, in place and in the mode of the old one."""
    parent, _, child = name.rpartition(".")
    new.training = module.get_submodule(name).training
    setattr(module.get_submodule(parent), child, new)


def plain_layer(config: Mapping[str, Any]) -> Any:
    """Build the convolution or linear layer that `config` names by `kind`, with the other entries as its arguments.

    >>> plain_layer({"kind": "Linear", "in_features": 2, "out_features": 3, "bias": False})
    Linear(in_features=2, out_features=3, bias=False)
    """
    kinds: dict[str, Any] = {kind.__name__: kind for kind in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)}
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in config.items()}
    return kinds[str(options.pop("kind"))](**options)


def _named(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def fit_layer(layer: nn.Module) -> bool:
    """Set the sizes that a layer of `torch.nn` keeps beside its parameters; False for any other module."""
    if isinstance(layer, nn.modules.conv._ConvNd):
        _fit_convolution(layer)
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape
    elif isinstance(layer, nn.Bilinear):
        layer.out_features, layer.in1_features, layer.in2_features = layer.weight.shape
    elif isinstance(layer, nn.modules.batchnorm._NormBase):
        known = layer.weight if layer.weight is not None else layer.running_mean
        if known is not None:
            layer.num_features = known.shape[0]
    elif isinstance(layer, (nn.LayerNorm, nn.RMSNorm)):
        if layer.weight is not None:
            layer.normalized_shape = tuple(layer.weight.shape)
    elif isinstance(layer, nn.GroupNorm):
        if layer.weight is not None and layer.weight.shape[0] != layer.num_channels:
            layer.num_groups = fitted_groups(layer.num_groups, layer.num_channels, layer.weight.shape[0])
            layer.num_channels = layer.weight.shape[0]
    elif isinstance(layer, nn.PReLU):
        layer.num_parameters = layer.weight.shape[0]
    elif isinstance(layer, nn.Embedding):
        layer.num_embeddings, layer.embedding_dim = layer.weight.shape
    elif isinstance(layer, nn.RNNCellBase):
        layer.input_size, layer.hidden_size = layer.weight_ih.shape[1], layer.weight_hh.shape[1]
    elif isinstance(layer, nn.RNNBase):
        first, recurrent = layer.get_parameter("weight_ih_l0"), layer.get_parameter("weight_hh_l0")
        layer.input_size, layer.hidden_size = first.shape[1], recurrent.shape[1]
        layer._init_flat_weights()
    elif isinstance(layer, nn.MultiheadAttention):
        _fit_attention(layer)
    else:
        return type(layer).__module__.startswith("torch.nn.modules")
    return True


def fitted_groups(groups: int, channels: int, left: int) -> int:
    """The number of groups when `left` of `channels` remain: whole groups went, unless there were only a few.

    >>> fitted_groups(32, 256, 128), fitted_groups(2, 8, 4), fitted_groups(8, 8, 3)
    (16, 2, 3)
    """
    if groups in (1, channels):
        return 1 if groups == 1 else left
    scaled, rest = divmod(groups * left, channels)
    return groups if groups < 4 or rest else scaled


def _fit_convolution(layer: nn.modules.conv._ConvNd) -> None:
    first, second = layer.weight.shape[:2]
    if layer.transposed:
        in_before, out_before = layer.in_channels, layer.out_channels
        if first != in_before and layer.groups > 1 and second == out_before // layer.groups:
            layer.groups = fitted_groups(layer.groups, in_before, first)
        layer.in_channels, layer.out_channels = first, second * layer.groups
        return
    per_group = layer.in_channels // layer.groups
    if first != layer.out_channels and layer.groups > 1 and second == per_group:
        if per_group == 1:  # depthwise, perhaps with several filters for each channel
            layer.groups = layer.groups * first // layer.out_channels
        else:
            layer.groups = fitted_groups(layer.groups, layer.out_channels, first)
    layer.out_channels, layer.in_channels = first, second * layer.groups


def _fit_attention(layer: nn.MultiheadAttention) -> None:
    width = layer.out_proj.weight.shape[1]
    if width != layer.embed_dim:
        layer.num_heads = max(1, width // layer.head_dim)
        layer.embed_dim = width
    if layer.in_proj_weight is not None:
        layer.kdim = layer.vdim = width
    else:
        layer.kdim, layer.vdim = layer.k_proj_weight.shape[1], layer.v_proj_weight.shape[1]
    layer.out_proj.out_features, layer.out_proj.in_features = layer.out_proj.weight.shape


def fit_attributes(module: nn.Module, pairs: list[tuple[str, tuple[int, ...], tuple[int, ...]]]) -> list[str]:
    """Correct the counts of channels and heads that a module of the user's keeps as plain integers.

    An attribute follows if its name stands for a width or a number of heads and its value is a size that changed: first among
    the module's own parameters, then among those of its children, and only where the new size is the same for all.
    A count of heads that no parameter shows falls as the layers inside do.
    """
    changed = []
    for name, value in list(vars(module).items()):
        if isinstance(value, bool) or not isinstance(value, int) or value < 2:
            continue
        heads = any(word in name.lower() for word in HEAD_WORDS) and "dim" not in name and "size" not in name
        if not heads and not any(word in name.lower() for word in WIDTH_WORDS):
            continue
        new = _followed(value, pairs)
        if new is None and heads:
            new = _scaled(value, pairs)
        if new is not None and new != value:
            setattr(module, name, new)
            changed.append(name)
    return changed


def _followed(value: int, pairs: list[tuple[str, tuple[int, ...], tuple[int, ...]]]) -> int | None:
    depths = sorted({name.count(".") for name, _, _ in pairs})
    for depth in depths:
        sizes = {
            after
            for name, old, new in pairs
            if name.count(".") == depth
            for before, after in zip(old, new)
            if before == value
        }
        if sizes:
            return next(iter(sizes)) if len(sizes) == 1 else None
    return None


def _scaled(value: int, pairs: list[tuple[str, tuple[int, ...], tuple[int, ...]]]) -> int | None:
    ratios = {(new[0], old[0]) for name, old, new in pairs if len(old) == 2 and old[0] != new[0]}
    counts = {value * new / old for new, old in ratios}
    if len(counts) == 1 and (count := next(iter(counts))) == int(count) and count >= 1:
        return int(count)
    return None


def shrunk_copy(module: nn.Module, values: Mapping[str, Tensor]) -> nn.Module:
    """Copy a module with other tensors in place of some parameters; what is replaced is never copied."""
    memo: dict[int, object] = {}
    for name, parameter in _named(module):
        if name in values:
            memo[id(parameter)] = parameter  # shared for a moment, replaced below
    twin = copied(module, memo)
    with torch.no_grad():
        replace_parameters(twin, values)
    return twin
