"""Weights that pruning set to zero stay zero while the rest is trained."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compress.counting import counted
from compress.training.options import TrainOptions

FEW = 0.01  # share of zeros below which a weight was not pruned


class Zeros:
    """Where weights are zero; `hold` sets them back after a step.

    A weight counts as pruned where at least one in a hundred of its elements is zero and the others differ from each
    other: all zeros are a layer that starts from nothing, equal ones an identity (Dirac) kernel; both shall learn.
    """

    def __init__(self, module: nn.Module, options: TrainOptions) -> None:
        self.pairs: list[tuple[nn.Parameter, Tensor]] = []
        self.elements = self.zeros = 0
        if not options.hold_zeros:
            return
        padding = {part.weight: part.padding_idx for part in module.modules() if isinstance(part, nn.Embedding)}
        for value in module.parameters():
            zeros = pruned(value, padding.get(value)) if value.requires_grad else None
            if zeros is not None:
                self.pairs.append((value, zeros))
                self.elements, self.zeros = self.elements + value.numel(), self.zeros + int(zeros.sum())

    def hold(self) -> None:
        with torch.no_grad():
            for value, zeros in self.pairs:
                value.masked_fill_(zeros, 0.0)

    @property
    def note(self) -> tuple[str, ...]:
        if not self.pairs:
            return ()
        share = self.zeros / self.elements
        return (
            f"zeros stayed zero: {share:.1%} of the weights of {counted(len(self.pairs), 'layer')}; hold_zeros=False trains them",
        )


def pruned(value: Tensor, padding: int | None = None) -> Tensor | None:
    """Where a weight is zero, if it is pruned (rule above); else None. A `padding` row is zero for a reason of its own."""
    if value.dim() < 2 or not value.is_floating_point():
        return None
    zeros = value.detach() == 0
    if padding is not None:
        zeros[padding] = False
    count = int(zeros.sum())
    if not FEW * value.numel() <= count < value.numel():
        return None
    rest = value.detach()[~zeros]
    return None if rest.numel() > 1 and bool((rest == rest[0]).all()) else zeros
