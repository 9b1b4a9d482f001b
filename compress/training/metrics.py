"""Running sums of loss and accuracy, added up exactly over batches of any size."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from compress.training.distributed import World


class Tally:
    """Sums over samples; `over` a world they become the means of all processes together."""

    def __init__(self) -> None:
        self.loss = 0.0
        self.count = 0
        self.right: Tensor | None = None
        self.judged = 0

    def add(self, loss: float, count: int, output: Any, target: Any) -> None:
        self.loss += loss * count
        self.count += count
        if is_classification(output, target):
            right = (output.detach().argmax(1) == target).sum()
            self.right = right if self.right is None else self.right + right  # on the device: no wait per batch
            self.judged += target.numel()

    def over(self, world: World, prefix: str) -> dict[str, float]:
        """Return the means, under names such as `train/loss`; the same on every process."""
        right = 0.0 if self.right is None else float(self.right)
        loss, count, right, judged = world.sum([self.loss, float(self.count), right, float(self.judged)])
        figures = {f"{prefix}/loss": loss / max(count, 1.0)}
        if judged:
            figures[f"{prefix}/top1"] = right / judged
        return figures

    def postfix(self) -> dict[str, str]:
        shown = {"loss": f"{self.loss / max(self.count, 1):.4f}"}
        if self.judged and self.right is not None:
            shown["top1"] = f"{100 * float(self.right) / self.judged:.2f}%"
        return shown


def is_classification(output: Any, target: Any) -> bool:
    """Whether `output` holds class scores (N, C, …) for integer classes `target` (N, …)."""
    return (
        isinstance(output, Tensor)
        and isinstance(target, Tensor)
        and output.dim() == target.dim() + 1
        and not target.is_floating_point()
        and target.dtype != torch.bool
        and output.shape[0] == target.shape[0]
    )
