"""A network, data, recipe small enough to run whole in a test."""

from pathlib import Path

import numpy as np

FACTORY = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.out = nn.Linear(16, 4)

    def forward(self, x):
        return self.out(self.second(self.first(x)).mean((2, 3)))


def build():
    torch.manual_seed(0)
    return Net()
"""

RECIPE = """\
out = "out"
seed = 3
threads = 1

[model]
spec = "net.py:build"

[data]
spec = "data.npz"
calibration_samples = 16

[prune]
amount = 0.5

[finetune]
epochs = 3
batch_size = 16
lr = 0.05
distill = true

[quantize]
method = "static"

[evaluate]
rounds = 5
"""


def prepare(folder: Path) -> Path:
    """Write net.py, data.npz, recipe.toml; each class is a bright quarter of the image."""
    rng = np.random.default_rng(0)

    def part(count):
        y = np.arange(count) % 4
        x = rng.standard_normal((count, 1, 8, 8)).astype(np.float32)
        for image, label in zip(x, y):
            row, column = 4 * (label // 2), 4 * (label % 2)
            image[:, row : row + 4, column : column + 4] += 1.5 * (label + 1)
        return x, y

    train, test = part(96), part(40)
    np.savez(folder / "data.npz", x_train=train[0], y_train=train[1], x_test=test[0], y_test=test[1])
    (folder / "net.py").write_text(FACTORY)
    (folder / "recipe.toml").write_text(RECIPE)
    return folder / "recipe.toml"
