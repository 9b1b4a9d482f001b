"""Exponential moving average of a module's weights (Polyak averaging as used in Inception, 2015).

After each step: average ← d·average + (1 − d)·weight. Integer buffers are copied.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class Average:
    """The average of every floating-point entry of `module.state_dict()`."""

    def __init__(self, module: nn.Module, decay: float):
        self.decay = decay
        self.values = {name: value.detach().clone() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        averages: list[Tensor] = []
        values: list[Tensor] = []
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                averages.append(self.values[name])
                values.append(value)
            else:
                self.values[name].copy_(value)
        torch._foreach_lerp_(averages, values, 1 - self.decay)

    @contextlib.contextmanager
    def applied(self, module: nn.Module) -> Iterator[nn.Module]:
        """Let `module` hold the averages for a block; then give it its own weights back, to the bit."""
        own = {name: value.detach().clone() for name, value in module.state_dict().items()}
        module.load_state_dict(self.values)
        try:
            yield module
        finally:
            module.load_state_dict(own)

    def state_dict(self) -> dict[str, Tensor]:
        return self.values

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in state.items():
                self.values[name].copy_(value)
