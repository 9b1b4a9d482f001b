"""What an epoch has done so far, and what the network cost before it learned anything."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from compress.training.metrics import Tally
from compress.training.seeds import random_states, restore_random_states

if TYPE_CHECKING:
    from compress.training.run_state import Run

LOOKED_AT = 4  # groups whose loss is measured before the first step


@dataclass
class Within:
    """An epoch under way: optimizer steps done, sums over samples, the loss of each step."""

    tally: Tally
    groups: int = 0
    losses: list[float] = field(default_factory=list)

    def state_dict(self) -> dict[str, Any]:
        return {"tally": self.tally.state_dict(), "groups": self.groups, "losses": list(self.losses)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.tally.load_state_dict(state["tally"])
        self.groups, self.losses = state["groups"], list(state["losses"])


def look_ahead(
    run: Run, groups: Iterable[list[Any]], loss: Callable[[list[Any]], tuple[float, int]]
) -> tuple[float, Iterable[list[Any]]]:
    """Measure the objective of the first groups, in training mode, before any step; also return all groups again.

    The run is not disturbed: running statistics and random states are as before.
    """
    groups = iter(groups)
    first = list(itertools.islice(groups, LOOKED_AT))
    states = random_states(run.world.device)
    buffers = {name: value.detach().clone() for name, value in run.module.named_buffers()}
    try:
        with torch.no_grad():
            found = [loss(group) for group in first]
    finally:
        with torch.no_grad():
            for name, value in run.module.named_buffers():
                kept = buffers[name]
                value.resize_(kept.shape).copy_(kept)  # observers give their buffers a size when they first see data
        restore_random_states(states, run.world.device)
    total, count = run.world.sum([sum(value for value, _ in found), float(sum(count for _, count in found))])
    return total / max(count, 1.0), itertools.chain(first, groups)
