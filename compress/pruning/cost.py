"""What a removal saves, counted from the labels."""

from __future__ import annotations

import numpy as np

from compress.pruning.channels import Channels
from compress.pruning.labels import core


class CostModel:
    """Counts of the module with some classes removed, without building it.

    MACs are those of one sample: of convolutions, linear and recurrent layers, and of products of activations.
    """

    def __init__(self, channels: Channels) -> None:
        self._channels = channels
        self._axes: dict[str, dict[int, np.ndarray]] = {}
        for (name, dim), roots in channels.axes.items():
            self._axes.setdefault(name, {})[dim] = roots
        self._products = [
            (work.positions, [core(item).numpy() for item in work.operands]) for work in channels.work if not work.param
        ]

    def parameters(self, removed: np.ndarray) -> int:
        """Elements of all parameters (buffers not counted) that stay."""
        gone, elements = self._gone(removed)
        return sum(self._elements(name, gone, elements) for name in self._channels.parameters)

    def macs(self, removed: np.ndarray) -> int:
        gone, elements = self._gone(removed)
        total = 0.0
        for work in self._channels.work:
            if work.param:
                total += work.positions * self._elements(work.param, gone, elements)
        for macs, operands in self._products:
            # Each operand's share that stays; the product shrinks by the smaller one (heads are in both).
            total += macs * min(1.0 - float(elements[operand].mean()) for operand in operands)
        return round(total)

    def _gone(self, removed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        gone = self._channels.gone(removed)
        return gone, self._channels.gone_elements(removed) if self._channels.elements else gone

    def _elements(self, name: str, gone: np.ndarray, elements: np.ndarray) -> int:
        shape = self._channels.shapes[name]
        axes = self._axes.get(name, {})
        if name in self._channels.element_labels:
            out = elements[self._channels.element_labels[name]]
            for dim, roots in axes.items():
                out = out | gone[roots].reshape([-1 if other == dim else 1 for other in range(out.ndim)])
            return int((~out).sum())
        count = 1
        for dim, size in enumerate(shape):
            count *= int((~gone[axes[dim]]).sum()) if dim in axes else size
        return count
