"""Removal of channels: the same module with smaller layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compress.errors import PruningError
from compress.pruning.channels import Channels
from compress.shapes import shrunk_copy


def kept_indices(channels: Channels, removed: np.ndarray) -> dict[str, dict[int, np.ndarray]]:
    """For each parameter that changes: along which dimensions, and which indices stay.

    Raises:
        PruningError: what would be removed of a parameter is not a set of whole slices.
    """
    gone = channels.gone(removed)
    found: dict[str, dict[int, np.ndarray]] = {}
    for (name, dim), roots in channels.axes.items():
        out = gone[roots]
        if out.any():
            found.setdefault(name, {})[dim] = np.flatnonzero(~out)
    elements = channels.gone_elements(removed) if channels.elements else gone
    for name, labels in channels.element_labels.items():
        out = elements[labels]
        if out.any():
            for dim, kept in _whole_slices(name, out).items():
                found.setdefault(name, {})[dim] = kept
    return found


def kept_outputs(module: nn.Module, channels: Channels, removed: np.ndarray) -> dict[str, np.ndarray]:
    """For each layer whose weight loses outputs (its first dimension), under each of its names: the indices that stay."""
    weights = {name: value for name, value in module.named_parameters(remove_duplicate=False)}
    found = {}
    for name, dims in kept_indices(channels, removed).items():
        if name.endswith("weight") and 0 in dims:
            aliases = [alias for alias, value in weights.items() if value is weights.get(name)]
            found.update({alias.removesuffix("weight").rstrip("."): dims[0] for alias in aliases})
    return found


def _whole_slices(name: str, out: np.ndarray) -> dict[int, np.ndarray]:
    found, left = {}, out
    for dim in range(out.ndim):
        rest = tuple(other for other in range(out.ndim) if other != dim)
        full = out.all(axis=rest)
        if full.any():
            found[dim] = np.flatnonzero(~full)
            left = np.take(left, found[dim], axis=dim)
    if left.any():
        raise PruningError(f"parameter {name!r} would lose single elements, not whole slices")
    return found


def remove(module: nn.Module, channels: Channels, removed: np.ndarray) -> nn.Module:
    """Return a copy of `module` without the channels of the classes in `removed`; the module itself stays as it is."""
    state: dict[str, Tensor] = dict(module.named_buffers(remove_duplicate=False))
    state.update(module.named_parameters(remove_duplicate=False))
    aliases: dict[int, list[str]] = {}
    for name, value in state.items():
        aliases.setdefault(id(value), []).append(name)
    values: dict[str, Tensor] = {}
    for name, dims in kept_indices(channels, removed).items():
        value = state[name].detach()
        for dim, kept in dims.items():
            value = value.index_select(dim, torch.from_numpy(kept))
        for alias in aliases[id(state[name])]:
            values[alias] = value
    twin = shrunk_copy(module, values)
    if not channels.whole_groups:
        _keep_groups(twin, module)
    return twin


def _keep_groups(twin: nn.Module, module: nn.Module) -> None:
    """Every group of a convolution stays, with fewer channels in each; shapes alone would say fewer groups."""
    for path, part in twin.named_modules():
        before: Any = module.get_submodule(path)
        if isinstance(part, nn.modules.conv._ConvNd) and before.groups not in (1, before.in_channels):
            first, second = part.weight.shape[:2]
            part.groups = before.groups
            inner = second * part.groups
            part.in_channels, part.out_channels = (first, inner) if part.transposed else (inner, first)
