"""A residual block around a gate, which runtimes fuse each in its own form."""

import torch
from torch import nn


class GatedBlock(nn.Module):
    """Convolutions, SiLU, a residual branch around `gate`, a mean, a linear layer: (N, 3, H, W) → (N, 4)."""

    def __init__(self, gate):
        super().__init__()
        self.stem, self.first, self.second = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 1)
        self.out, self.gate = nn.Linear(16, 4), gate

    def forward(self, x):
        x = nn.functional.silu(self.stem(x))
        x = torch.relu(x + self.second(self.gate(self.first(x))))
        return self.out(x.mean((2, 3)))
