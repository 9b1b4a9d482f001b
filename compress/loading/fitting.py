"""Shrinks an architecture to what a pruned model's state dict holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import accumulate

import torch
from torch import Tensor, nn

from compress.counting import counted
from compress.errors import WeightsError
from compress.metadata import attributes, baked, recorded, remember, remember_baked
from compress.shapes import plain_layer, replace_module, replace_parameters, skip_for


def fit_to_state_dict(module: nn.Module, state: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Give every layer of `module`, in place, the shapes that `state` has for it; the values are loaded later.

    Counts that layers keep beside their weights (channels, groups, heads, widths) follow the shapes, and where `state`
    has more to say (see `compress.metadata`), that. Names in `state` that the module lacks, and the reverse, are left to
    the loader.

    Returns:
        Sentences for the user: pruning never removes a network's own outputs, so where those become fewer, the
        checkpoint was made for another number of classes, or is the wrong one.

    Raises:
        WeightsError: a tensor is larger than the architecture's, or has another number of dimensions, so that this
            cannot be a pruned version of it.
    """
    expected = {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers())}
    changed: dict[str, Tensor] = {}
    for name, value in state.items():
        own = expected.get(name)
        if own is None or own.shape == value.shape:
            continue
        if own.dim() != value.dim() or any(new > old for new, old in zip(value.shape, own.shape)):
            raise WeightsError(
                f"{name!r} is {tuple(value.shape)} and the architecture has {tuple(own.shape)}: not a pruned version of it"
            )
        changed[name] = torch.zeros(value.shape, dtype=own.dtype)
    notes = tuple(_outputs_cut(expected, changed, module))
    before, restorations = attributes(module), recorded(module, state)
    if changed:
        replace_parameters(module, changed)
    for restoration in restorations:
        restoration.apply()
    remember(module, before)  # so that what is saved next says it as well
    return notes


def put_plain_layers(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put plain layers, in place, where pruning stored the weight that the architecture computes from others."""
    names = {name for name, _ in module.named_modules()}
    for path, config in baked(state).items():
        if not path or path not in names:
            continue
        try:
            layer = plain_layer(config)
        except Exception as error:  # whatever a constructor raises on sizes that no pruning wrote
            raise WeightsError(f"what the checkpoint says of layer {path!r} makes no layer: {error}") from error
        if type(module.get_submodule(path)) is not type(layer):
            replace_module(module, path, layer)
            remember_baked(layer, config)
        elif "parametrizations" in dict(module.get_submodule(path).named_children()):
            replace_module(module, path, layer)


def remove_missing_blocks(module: nn.Module, state: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Put `nn.Identity` (or `Skip`), in place, where the checkpoint's module had no layers; return those modules' names.

    PyTorch's state dicts list the modules that they came from (`_metadata`), an `nn.Identity` too. A checkpoint
    without that list (a plain dict) changes nothing here.
    """
    listed = getattr(state, "_metadata", None)
    if not listed:
        return ()
    names = (key.split(".")[:-1] for key in (*listed, *state))
    filled = {outer for parts in names for outer in accumulate(parts, "{}.{}".format)}  # what has something inside it
    removed: list[str] = []
    for name, part in list(module.named_modules()):
        if not name or name not in listed or any(name.startswith(f"{outer}.") for outer in removed):
            continue
        had_layers = any(True for _ in part.children()) and any(True for _ in part.parameters())
        if had_layers and name not in filled:
            replace_module(module, name, skip_for(part))
            removed.append(name)
    return tuple(removed)


def _outputs_cut(expected: Mapping[str, Tensor], changed: Mapping[str, Tensor], module: nn.Module) -> Iterator[str]:
    """Layers that lose outputs which no layer reads: those of the network.

    What pruning removes is missing in the readers too. Where no reader of any layer shrank, each layer that did is an
    output; else only the last one that the module lists can be identified, where no reader lost the same channels.
    """
    pairs = {name: (tuple(expected[name].shape), tuple(value.shape)) for name, value in changed.items()}
    owners = {name: module.get_submodule(name.rpartition(".")[0]) for name, (old, _) in pairs.items() if len(old) > 1}
    turned = {name for name, owner in owners.items() if getattr(owner, "transposed", False)}  # inputs come first there
    places = {name: 0 if name in turned else 1 for name in owners}
    read = {(pairs[name][0][place], pairs[name][1][place]) for name, place in places.items()}
    read = {(old, new) for old, new in read if old != new}
    last = [name for name, value in module.named_parameters() if value.dim() > 1][-1:]
    for name, owner in owners.items():
        old, new = (shape[0] for shape in pairs[name])
        counts_outputs = isinstance(owner, (nn.Linear, nn.modules.conv._ConvNd)) and name not in turned
        if not counts_outputs or old == new or (old, new) in read or (read and name not in last):
            continue
        yield (
            f"layer {name.rpartition('.')[0]} has {counted(new, 'output')} in the checkpoint and {old} in the architecture: "
            f"cut to fit; if it should have {old}, this is another model's checkpoint"
        )
