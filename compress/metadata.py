"""What pruning changed beside the tensors, in the metadata of the state dict.

Shapes do not tell how many groups or heads are left, what a forward now reads from an attribute, or which part of a buffer
stays that no file holds. A module where such a thing changed writes it, whenever its state dict is taken, into the entry
that PyTorch keeps for it there, so that it goes wherever the weights go:

    state._metadata["block.attention"] == {"version": 1, "pruned": {"attributes": {"h": 2}, "kept": {"scale": [None, [0, 3]]}}}

Names, integers and lists only: `weights_only=True` reads them, and JSON holds them for safetensors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

KEY = "pruned"
Kept = list[list[int] | None]  # for each dimension the indices that stay, None for all


@dataclass
class Record:
    """The state-dict hook of one module: which of its attributes pruning changed, and what stays of its own buffers."""

    attributes: set[str] = field(default_factory=set)
    kept: dict[str, Kept] = field(default_factory=dict)
    baked: dict[str, Any] = field(default_factory=dict)  # the sizes of the plain layer that took a computed one's place

    def __call__(self, part: nn.Module, state: Any, prefix: str, metadata: dict[str, Any]) -> None:
        now = attributes_of(part)
        values = {name: now[name] for name in sorted(self.attributes) if name in now}
        plain = {name: value if isinstance(value, int) else list(value) for name, value in values.items()}
        metadata[KEY] = {"attributes": plain, "kept": dict(self.kept)}
        if self.baked:
            metadata[KEY]["baked"] = dict(self.baked)


@dataclass(frozen=True)
class Restoration:
    """What a state dict says of one module of another copy, as far as that could be a pruned one's."""

    part: nn.Module
    attributes: dict[str, Any]
    kept: dict[str, Kept]

    def apply(self) -> None:
        for name, value in self.attributes.items():
            setattr(self.part, name, value)
        for name, kept in self.kept.items():
            buffer = self.part._buffers[name]
            assert buffer is not None
            self.part._buffers[name] = _cut(buffer, kept)
        record = _record(self.part)
        record.attributes |= self.attributes.keys()
        record.kept |= self.kept


def attributes_of(part: nn.Module) -> dict[str, Any]:
    """Integers, and lists or tuples of integers, that a module keeps as plain attributes."""
    return {name: value for name, value in vars(part).items() if _is_size(value)}


def attributes(module: nn.Module) -> dict[str, dict[str, Any]]:
    """Those of each submodule by its path, to compare with later."""
    return {path: attributes_of(part) for path, part in module.named_modules()}


def remember(
    module: nn.Module,
    before: Mapping[str, Mapping[str, Any]],
    kept: Mapping[str, Mapping[int, np.ndarray]] | None = None,
) -> None:
    """Let `module` write into its state dicts what differs from the attributes `before`, beside what it wrote already.

    Args:
        kept: of each buffer that was cut, the dimensions and the indices that stay. Only those outside of the state
            dict are noted.
    """
    cut = kept or {}
    for path, part in module.named_modules():
        old = before.get(path, {})
        now = attributes_of(part)
        changed = {name for name, value in now.items() if old.get(name, value) != value}
        if changed and now.get("groups", 1) != 1:  # shapes alone could mean another number of groups
            changed |= now.keys() & {"groups", "in_channels", "out_channels"}
        buffers = {
            name: cut[full]
            for name in part._non_persistent_buffers_set
            if (full := f"{path}.{name}".lstrip(".")) in cut
        }
        known = _known(part)
        if not buffers and (not changed or (known is None and _shapes_tell(part, old))):
            continue
        record = known or _record(part)
        record.attributes |= changed
        for name, dims in buffers.items():
            record.kept[name] = _followed(record.kept.get(name), dims, part._buffers[name])


def remember_baked(part: nn.Module, config: Mapping[str, Any]) -> None:
    """Let `part`, a plain layer in the place of one with a computed weight, say so in its state dicts."""
    _record(part).baked = dict(config)


def baked(state: Any) -> dict[str, dict[str, Any]]:
    """Which modules `state` holds as plain layers in place of computed ones, with the arguments of `plain_layer`."""
    listed = getattr(state, "_metadata", None)
    found = {}
    for path, entry in listed.items() if isinstance(listed, Mapping) else ():
        stored = entry.get(KEY) if isinstance(entry, Mapping) else None
        if isinstance(stored, Mapping) and isinstance(stored.get("baked"), Mapping):
            found[path] = dict(stored["baked"])
    return found


def recorded(module: nn.Module, state: Any) -> list[Restoration]:
    """What `state` says for the submodules of `module`, to be applied once the shapes fit.

    Only what pruning can have done is taken: an integer attribute that is there already becomes smaller, a buffer loses
    some of its slices. Anything else in the file is passed over.
    """
    listed = getattr(state, "_metadata", None)
    found: list[Restoration] = []
    if not isinstance(listed, Mapping):
        return found
    for path, part in module.named_modules():
        entry = listed.get(path)
        stored = entry.get(KEY) if isinstance(entry, Mapping) else None
        if not isinstance(stored, Mapping):
            continue
        own = attributes_of(part)
        values = _items(stored.get("attributes"))
        fitting = {name: _like(own[name], value) for name, value in values if name in own and _fits(own[name], value)}
        buffers = {
            name: kept
            for name, kept in _items(stored.get("kept"))
            if name in part._non_persistent_buffers_set and _can_cut(part._buffers[name], kept)
        }
        found.append(Restoration(part, fitting, buffers))
    return found


def to_text(state: Any) -> str:
    """The names of the modules and what pruning noted, as JSON, for files that hold tensors and text only."""
    listed = getattr(state, "_metadata", None) or {}
    return json.dumps({path: {KEY: entry[KEY]} if KEY in entry else {} for path, entry in listed.items()})


def from_text(text: str) -> dict[str, Any] | None:
    """Read what `to_text` wrote; None where it is something else."""
    try:
        listed = json.loads(text)
    except ValueError:
        return None
    return listed if isinstance(listed, dict) else None


def _is_size(value: Any) -> bool:
    if type(value) in (list, tuple):
        return bool(value) and all(type(item) is int for item in value)
    return type(value) is int  # not bool


def _shapes_tell(part: nn.Module, before: Mapping[str, Any]) -> bool:
    """Whether weights alone say all about a layer. Such layers get no hook: a pickle of them needs no `compress`."""
    counted = isinstance(part, (nn.GroupNorm, nn.MultiheadAttention)) or before.get("groups", 1) != 1
    return type(part).__module__.startswith("torch.nn.modules") and not counted


def _known(part: nn.Module) -> Record | None:
    return next((hook for hook in part._state_dict_hooks.values() if isinstance(hook, Record)), None)


def _record(part: nn.Module) -> Record:
    record = _known(part)
    if record is None:
        record = Record()
        part.register_state_dict_post_hook(record)
    return record


def _followed(earlier: Kept | None, dims: Mapping[int, np.ndarray], buffer: Tensor | None) -> Kept:
    """The indices that stay of the first buffer, after cuts one upon the other."""
    assert buffer is not None
    result: Kept = list(earlier) if earlier else [None] * buffer.dim()
    for dim, places in dims.items():
        first = result[dim]
        result[dim] = [int(place) if first is None else first[place] for place in places]
    return result


def _items(value: Any) -> list[tuple[Any, Any]]:
    return list(value.items()) if isinstance(value, Mapping) else []


def _fits(own: Any, value: Any) -> bool:
    if type(own) is int:
        return type(value) is int and (value == own or 0 < value < own)
    same = _is_size(value) and type(value) is not int and len(value) == len(own)
    return same and all(_fits(*pair) for pair in zip(own, value))


def _like(own: Any, value: Any) -> Any:
    return value if isinstance(own, int) else type(own)(value)


def _can_cut(buffer: Tensor | None, kept: Any) -> bool:
    if buffer is None or not isinstance(kept, list) or len(kept) != buffer.dim():
        return False
    pairs = [(places, size) for places, size in zip(kept, buffer.shape) if places is not None]
    if not all(isinstance(places, list) and _is_size(places) for places, _ in pairs):
        return False
    return all(
        len(places) == size or (len(places) < size and min(places) >= 0 and max(places) < size)
        for places, size in pairs
    )


def _cut(buffer: Tensor, kept: Kept) -> Tensor:
    for dim, places in enumerate(kept):
        if places is not None and len(places) != buffer.shape[dim]:  # else it is a pruned module's
            buffer = buffer.index_select(dim, torch.tensor(places, device=buffer.device))
    return buffer
