"""Sizes that forward code takes from plain attributes: made to follow when channels go.

The program shows, for every reshape, which size each dimension had; the labels say which size it must have now.
An attribute of the module whose forward made the reshape follows if it holds one of the sizes that change.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compress.pruning.channels import Channels
from compress.pruning.labels import kept_places
from compress.pruning.trace import Labelled, module_of
from compress.pruning.verifying import outer


def follow_literals(
    candidate: nn.Module, module: nn.Module, channels: Channels, removed: np.ndarray, paths: Collection[str]
) -> list[str]:
    """Correct attributes of the modules at `paths` and of those that called them; return what was changed.

    One that followed the parameters, and was a size that stays in every reshape (heads that are kept, each of them
    narrower), gets the value back that it has in `module`.
    """
    if not paths:
        return []
    wanted = {place for path in paths for place in (path, outer(channels, path))}
    gone = torch.from_numpy(channels.gone(removed))
    sizes: dict[str, dict[int, set[int]]] = {}
    for node, labelled in channels.labels.items():
        place = module_of(node)
        if (
            node.op != "call_function"
            or place not in wanted
            or not isinstance(labelled, Labelled)
            or labelled.labels is None
        ):
            continue
        for before, after in zip(labelled.labels.shape, _new_shape(labelled.labels, gone)):
            sizes.setdefault(place, {}).setdefault(before, set()).add(after)
    changed = []
    modules = dict(candidate.named_modules())
    for place, found in sizes.items():
        part = modules.get(place)
        if part is None or type(part).__module__.startswith("torch.nn.modules"):
            continue
        moved = {old: next(iter(new - {old})) for old, new in found.items() if len(new - {old}) == 1 and old > 2}
        stays = {old for old, new in found.items() if new == {old}}
        attributes = vars(module.get_submodule(place))
        for name, value in list(vars(part).items()):
            earlier = attributes.get(name)
            if type(earlier) is int and earlier != value:  # it followed the parameters already
                new = earlier if earlier in stays else value
            else:
                new = _followed(value, moved)
            if new != value and name != "training":
                setattr(part, name, new)
                changed.append(f"{place}.{name}".lstrip("."))
    return changed


def _new_shape(labels: Tensor, gone: Tensor) -> list[int]:
    kept = kept_places(labels, gone)
    return [kept[dim].numel() if dim in kept else size for dim, size in enumerate(labels.shape)]


def _followed(value: Any, moved: dict[int, int]) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        return moved.get(value, value)
    if (
        isinstance(value, (list, tuple))
        and value
        and all(isinstance(item, int) for item in value)
        and type(value) in (list, tuple)
    ):
        return type(value)(moved.get(item, item) for item in value)
    return value
