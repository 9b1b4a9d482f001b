"""The table of losses. A new loss is one file with its function and one line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from compress.tables import Entry, at

HOME = "compress.training.losses"
OWN = "model"  # the loss that the model works out itself


@dataclass(frozen=True)
class LossEntry(Entry):
    """A loss: a function `TrainOptions` → (outputs, target) → mean over the samples. `needs`: the targets that it takes.

    `refuses`: a function (output, target) → why it does not take them, "" where it does; or its place.
    """

    refuses: str | Callable[[Any, Any], str] | None = None

    def refusal(self, output: Any, target: Any) -> str:
        """Why this loss does not take this output with this target; "" where it does."""
        return "" if self.refuses is None else str(at(self.refuses)(output, target))


_SHAPED = "numbers of the outputs' shape"
LOSSES: dict[str, LossEntry] = {
    "cross_entropy": LossEntry(
        f"{HOME}:cross_entropy",
        "negative log of the softmax of the right class",
        "class numbers (N,) for scores (N, C), or (N, …) for (N, C, …); or shares of the classes (N, C)",
        f"{HOME}:not_classes",
    ),
    "bce": LossEntry(
        f"{HOME}:binary_cross_entropy",
        "binary cross-entropy of logits: one output for each yes-or-no question",
        "0 and 1 (integers, floats, booleans) of the outputs' shape; (N,) for (N, 1)",
        f"{HOME}:not_binary",
    ),
    "mse": LossEntry(f"{HOME}:squared_error", "mean squared error", _SHAPED, f"{HOME}:not_numbers"),
    "mae": LossEntry(f"{HOME}:absolute_error", "mean absolute error", _SHAPED, f"{HOME}:not_numbers"),
    "huber": LossEntry(f"{HOME}:huber", "squared error below 1, absolute above", _SHAPED, f"{HOME}:not_numbers"),
    OWN: LossEntry(
        f"{HOME}:of_the_model",
        "the model's own: forward is given the labels, and its output has a `loss`, as transformers' models do",
        "whatever forward takes as labels",
    ),
}
