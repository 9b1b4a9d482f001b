"""Labels of channels: the union of those that are removed together.

Every element of every activation carries an integer label; an index along a parameter's axis owns one.

    NONE  = -1   no channel stands behind this element (a constant, a zero of padding): no constraint
    FIXED =  0   must stay as it is (the user's inputs and outputs, whatever an unknown operator read)
    1, 2, …      channels

`unite(a, b)` says that two channels go together. The classes of this equivalence are what can be removed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

NONE = -1
FIXED = 0
FEW_GROUPS = 4  # below it, channels of a grouped operator are removed at the same place of every group


class LabelStore:
    """A union-find over labels, vectorised: pairs are collected, then merged in one go by `flush`."""

    def __init__(self) -> None:
        self.count = 1  # label 0 is FIXED
        self._root = np.zeros(1, dtype=np.int64)
        self._pending: list[tuple[np.ndarray, np.ndarray]] = []
        self._locks: list[tuple[np.ndarray, str]] = []

    def new(self, count: int) -> Tensor:
        """Return `count` labels that are not used yet, as a vector."""
        start, self.count = self.count, self.count + count
        return torch.arange(start, self.count)

    def unite(self, first: Tensor, second: Tensor) -> None:
        """Unite labels pairwise; the two broadcast. Pairs with NONE say nothing."""
        a, b = np.broadcast_arrays(first.numpy(), second.numpy())
        a, b = a.reshape(-1), b.reshape(-1)
        keep = (a != b) & (a != NONE) & (b != NONE)
        if keep.any():
            self._pending.append((a[keep], b[keep]))

    def lock(self, labels: Tensor, reason: str, *, foremost: bool = False) -> None:
        """Say that these channels stay, and why; a class reports its first reason, or one that is `foremost`."""
        flat = np.unique(core(labels).numpy())
        flat = flat[flat > FIXED]
        if flat.size:
            self._locks.insert(0 if foremost else len(self._locks), (flat, reason))

    def flush(self) -> np.ndarray:
        """Merge what was united since the last call; return the root of every label (its class's least label)."""
        if self._root.size < self.count:
            self._root = np.concatenate([self._root, np.arange(self._root.size, self.count, dtype=np.int64)])
        if not self._pending:
            return self._root
        root = self._root
        a = np.concatenate([pair[0] for pair in self._pending])
        b = np.concatenate([pair[1] for pair in self._pending])
        self._pending.clear()
        while True:
            low, high = np.minimum(root[a], root[b]), np.maximum(root[a], root[b])
            apart = low != high
            if not apart.any():
                break
            a, b = a[apart], b[apart]
            np.minimum.at(root, high[apart], low[apart])
            while True:  # pointer jumping: every label learns its class's root in logarithmic steps
                shorter = root[root]
                if np.array_equal(shorter, root):
                    break
                root = shorter
        self._root = root
        return root

    def roots(self, labels: Tensor) -> Tensor:
        """Return `labels` with each one replaced by its class's root; strides of 0 stay."""
        root = torch.from_numpy(self.flush())
        small = core(labels)
        return torch.where(small > FIXED, root[small.clamp(min=0)], small).expand(labels.shape)

    def used(self) -> np.ndarray:
        """Return for every label whether it is tied to another, or must stay."""
        root = self.flush()
        found = (np.bincount(root, minlength=root.size) > 1)[root]
        for labels, _ in self._locks:
            found[labels] = True
        return found

    def locked(self) -> dict[int, str]:
        """Return the root of every class that must stay, with the reason."""
        root = self.flush()
        found: dict[int, str] = {}
        for labels, reason in self._locks:
            for label in np.unique(root[labels]).tolist():
                found.setdefault(label, reason)
        return found


def core(labels: Tensor) -> Tensor:
    """Return the part of a label tensor that is stored: every dimension of stride 0 cut to length 1."""
    for dim in range(labels.dim()):
        if labels.shape[dim] > 1 and labels.stride(dim) == 0:
            labels = labels.narrow(dim, 0, 1)
    return labels


def shrink(labels: Tensor) -> Tensor:
    """Give every dimension along which nothing changes the stride 0, so that it costs nothing from here on."""
    shape = labels.shape
    if labels.numel() == 0:
        return labels
    small = core(labels)
    for dim in range(small.dim()):
        if small.shape[dim] > 1:
            first = small.narrow(dim, 0, 1)
            # The second slice alone settles nearly all cases, without reading the rest.
            if torch.equal(first, small.narrow(dim, 1, 1)) and bool((small == first).all()):
                small = first
    return small.expand(shape)


def varying(labels: Tensor) -> list[int]:
    """Return the dimensions along which labels change (after `shrink`: those without stride 0)."""
    small = core(labels)
    return [dim for dim in range(small.dim()) if small.shape[dim] > 1]


def first_along(labels: Tensor, dims: Iterable[int]) -> Tensor:
    """Return `labels` with the given dimensions cut to length 1."""
    for dim in dims:
        labels = labels.narrow(dim, 0, 1)
    return labels


def concatenate(tensors: Sequence[Tensor], dim: int) -> Tensor:
    """Concatenate label tensors without unfolding the dimensions that none of them changes along."""
    dims = tensors[0].dim()
    dim %= dims
    total = sum(item.shape[dim] for item in tensors)
    shape = [total if axis == dim else tensors[0].shape[axis] for axis in range(dims)]
    uniform = [
        axis
        for axis in range(dims)
        if axis != dim and all(item.shape[axis] == 1 or item.stride(axis) == 0 for item in tensors)
    ]
    return torch.cat([first_along(item, uniform) for item in tensors], dim).expand(shape)


def kept_places(labels: Tensor, gone: Tensor) -> dict[int, Tensor]:
    """For each dimension that shrinks, the positions that stay."""
    small = core(labels)
    flags = gone[small]
    found = {}
    for dim in varying(small):
        rest = tuple(other for other in range(small.dim()) if other != dim)
        empty = flags.all(rest) if rest else flags
        if empty.any():
            found[dim] = torch.nonzero(~empty).flatten()
    return found
