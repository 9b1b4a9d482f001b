"""Shrinks an architecture's layers to the shapes in a pruned model's state dict."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from compress.errors import WeightsError
from compress.shapes import replace_parameters


def fit_to_state_dict(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give every layer of `module`, in place, the shapes that `state` has for it; the values are loaded later.

    Counts that layers keep beside their weights (channels, groups, heads, widths) follow the shapes. Names in
    `state` that the module lacks, and the reverse, are left to the loader.

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
    replace_parameters(module, changed)
