"""Fine-tuning by settings chosen to be bad: what is returned is never less than what was given.

    python benchmarks/finetuning.py                  # a table: accuracy before, in the last epoch, of what is returned

Small networks on the digits that ship with scikit-learn: a CNN with batch-norm, the same pruned by half, one with masks,
and an encoder with attention. Each is trained first, then fine-tuned by every setting. The exit code is 1 where a row
returns less than it was given.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from typing import Any

import torch
from torch import Tensor, nn

import compress
from compress.training.loop import FitResult

EPOCHS = 3
SETTINGS: dict[str, dict[str, Any]] = {
    "sgd, rate ×100": {"optimizer": "sgd", "lr": 1.0},
    "sgd, rate ×1000": {"optimizer": "sgd", "lr": 10.0},
    "sgd, overflows": {"optimizer": "sgd", "lr": 1e30},
    "adam, rate ×100": {"optimizer": "adam", "lr": 1e-2},
    "adam, rate ×10,000": {"optimizer": "adam", "lr": 1.0},
    "rmsprop, rate ×1000": {"optimizer": "rmsprop", "lr": 0.1},
    "rprop on mini-batches": {"optimizer": "rprop", "lr": 0.01},
    "adadelta as torch has it": {"optimizer": "adadelta"},
    "weight decay 10": {"optimizer": "sgd", "lr": 0.05, "weight_decay": 10.0},
    "momentum 0.999": {"optimizer": "sgd", "lr": 0.2, "momentum": 0.999, "scheduler": "none"},
    "label smoothing 0.95": {"optimizer": "adam", "lr": 3e-3, "label_smoothing": 0.95},
    "batches of 4, no schedule": {"optimizer": "sgd", "lr": 0.3, "batch_size": 4, "scheduler": "none"},
    "a teacher that knows nothing": {"optimizer": "adam", "lr": 3e-3, "distill_weight": 1.0},
    "what it chooses itself": {},
}
TAUGHT_BADLY = "a teacher that knows nothing"


class Encoder(nn.Module):
    """Rows of an image as tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Linear(8, 32), nn.Parameter(torch.randn(1, 8, 32) * 0.1)
        self.layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.embed(x.reshape(-1, 8, 8)) + self.place).mean(1))


def convolutional() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, 2, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10)),
    )


def networks(data: Any) -> dict[str, nn.Module]:
    """The trained networks that are fine-tuned."""
    found: dict[str, nn.Module] = {}
    for name, make in (("CNN", convolutional), ("encoder", Encoder)):
        torch.manual_seed(0)
        options = compress.TrainOptions(epochs=15, batch_size=64, **({"lr": 3e-3} if name == "encoder" else {}))
        found[name] = compress.fit(make(), data, options).module.eval()
    example = torch.randn(2, 1, 8, 8)
    found["CNN, half pruned"] = compress.prune(found["CNN"], example, amount=0.5).model
    found["CNN, masks"] = compress.prune(found["CNN"], example, amount=0.8, remove_channels=False).model
    return found


def accuracy(module: nn.Module, data: Any) -> float:
    right = total = 0
    with torch.no_grad():
        for x, y in data.loader("test", batch_size=256):
            right, total = right + int((module.eval()(x).argmax(1) == y).sum()), total + len(y)
    return right / total


def tuned(module: nn.Module, data: Any, name: str) -> FitResult:
    torch.manual_seed(7)
    teacher = convolutional() if name == TAUGHT_BADLY else None
    options = compress.FinetuneOptions(**{"epochs": EPOCHS, "batch_size": 64, **SETTINGS[name]})
    return compress.fit(module, data, options, teacher=teacher)


def main() -> int:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    data = compress.open_data("digits")
    worse = helped = runs = 0
    print("| network | setting | before | last epoch | returned | kept epoch |\n|---|---|---|---|---|---|")
    for network, module in networks(data).items():
        before = accuracy(module, data)
        for name in SETTINGS:
            result = tuned(module, data, name)
            after = accuracy(result.module, data)
            last = f"{100 * result.history[-1]['eval/top1']:.2f}" if result.history else "not finite"
            print(
                f"| {network} | {name} | {100 * before:.2f} | {last} | {100 * after:.2f} | {result.kept_epoch} |",
                flush=True,
            )
            runs, worse, helped = runs + 1, worse + (after < before), helped + (after > before)
    print(f"\n{runs} runs: {worse} returned less than they were given, {helped} more")
    return int(worse > 0)


if __name__ == "__main__":
    sys.exit(main())
