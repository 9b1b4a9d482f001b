"""Running sums of loss and accuracy, added up exactly over batches of any size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from compress.training.distributed import World
from compress.training.main_output import find_tensor

if TYPE_CHECKING:
    from compress.training.criterion import Criterion


class Tally:
    """Sums over samples; `over` a world they become the means of all processes together."""

    def __init__(self, criterion: Criterion | None = None) -> None:
        self.name = criterion.name if criterion is not None else "cross_entropy"
        self.loss = 0.0
        self.count = 0
        self.right: Tensor | None = None
        self.judged = 0
        self.classes = 0  # of the outputs, where they are class scores

    def add(self, loss: float, count: int, output: Any, target: Any) -> None:
        self.loss += loss * count
        self.count += count
        scores = find_tensor(output)
        right = right_answers(scores, target, self.name)
        if right is not None and scores is not None:
            self.right = right.sum() if self.right is None else self.right + right.sum()  # on the device: no wait
            self.judged += right.numel()
            self.classes = max(2, scores.shape[1] if scores.dim() > 1 else 2)

    def state_dict(self) -> dict[str, Any]:
        right = 0 if self.right is None else int(self.right)
        return {"loss": self.loss, "count": self.count, "right": right, "judged": self.judged}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.loss, self.count, self.judged = state["loss"], state["count"], state["judged"]
        self.right = torch.tensor(state["right"]) if self.judged else None

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


def right_answers(output: Tensor | None, target: Any, loss: str) -> Tensor | None:
    """Which answers are right; None where outputs are no scores of classes, or of one yes-or-no question (bce)."""
    if output is None:
        return None
    if loss == "bce" and isinstance(target, Tensor) and target.numel() == output.numel() == len(output):
        yes = target.reshape(-1)
        return (output.detach().reshape(-1) > 0) == (yes > 0.5) if bool(((yes == 0) | (yes == 1)).all()) else None
    if not is_classification(output, target) or output.shape[1] == 1:
        return None
    return output.detach().argmax(1) == target


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
