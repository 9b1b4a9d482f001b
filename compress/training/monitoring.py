"""The user's metrics on the evaluation data, over all processes: the figure that decides which epoch is best."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from compress.measures.opening import Measures
from compress.measures.tally import Tally
from compress.training.distributed import World
from compress.training.main_output import find_tensor, named_outputs


class Judge:
    """Takes outputs and targets batch by batch; without metrics it keeps nothing."""

    def __init__(self, measures: Measures | None) -> None:
        self.measures = measures
        self.batches: list[tuple[tuple[Tensor, ...], Any]] = []

    def add(self, output: Any, target: Any) -> None:
        """Keep a batch; its tensors go to the CPU, where metrics run."""
        if self.measures is None:
            return
        self.batches.append((_tensors(output), _on_cpu(target)))

    def over(self, world: World, prefix: str) -> dict[str, float]:
        """Return each figure under `prefix/name`; the same on every process."""
        if self.measures is None:
            return {}
        tally: Tally | None = None
        for part in world.gather(self.batches):
            for outputs, target in part:
                tally = tally or self.measures.start(self.measures.read(outputs, target))
                tally.add(outputs, target)
        if tally is None:
            return {}
        return {f"{prefix}/{item.name}": item.value for item in tally.measures(intervals=False)}


def _tensors(output: Any) -> tuple[Tensor, ...]:
    if isinstance(output, Tensor):
        return (output.detach().float().cpu(),)
    first = find_tensor(output)
    if first is not None:
        return (first.detach().float().cpu(),)
    return tuple(value.detach().cpu() for value in named_outputs(output).values() if isinstance(value, Tensor))


def _on_cpu(target: Any) -> Any:
    if isinstance(target, Tensor):
        return target.detach().cpu()
    if isinstance(target, dict):
        return {key: _on_cpu(value) for key, value in target.items()}
    if isinstance(target, (tuple, list)):
        return type(target)(_on_cpu(value) for value in target)
    return target
