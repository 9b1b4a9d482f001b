"""Removal of channels: the same module with smaller layers."""

from __future__ import annotations

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
    flagged = np.zeros(channels.root.size, dtype=bool)
    found: dict[str, dict[int, np.ndarray]] = {}
    for (name, dim), roots in channels.axes.items():
        out = gone[roots]
        if out.any():
            found.setdefault(name, {})[dim] = np.flatnonzero(~out)
    for owner, owned in channels.owners:
        flagged[np.unique(owned[gone[owner]])] = True
    for name, roots in channels.elements.items():
        out = gone[roots] | flagged[channels.element_labels[name]]
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
    return shrunk_copy(module, values)
