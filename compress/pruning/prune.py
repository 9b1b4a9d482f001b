"""The verb: `compress.prune`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compress.errors import PruningError
from compress.pruning.denormals import flush_denormals
from compress.pruning.removal import Request, remove_channels
from compress.pruning.selection import Selection
from compress.steps import Step


def prune(
    module: nn.Module,
    example_inputs: Tensor | Sequence[Tensor],
    *,
    amount: float = 0.5,
    target: str = "channels",
    method: str | Callable[[Tensor], Tensor] = "l1",
    scope: str = "uniform",
    round_to: int | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    data: Iterable[Any] | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    latency: Callable[[nn.Module], float] | None = None,
    seed: int = 0,
) -> Step:
    """Remove channels, really: return a copy of the module with smaller layers.

    Args:
        module: any module that `torch.export` takes. It is not touched.
        example_inputs: tensors, batch first, a batch of 2.
        amount: the fraction to remove, of `target`: "channels" of every family, "macs", "parameters", or measured
            "latency" (then `latency` measures a module in milliseconds).
        method: score by which the least important go: l1, l2, random, batchnorm, taylor (needs `data`), fpgm;
            or a function from filters (n, elements) to scores (n).
        scope: "uniform" removes the same fraction everywhere; "global" ranks all channels of the model together.
        round_to: leave multiples of this many channels. By default 16 where a layer is wide enough, less in narrow ones.
        include, exclude: names of layers or modules, `*` allowed; only these, all but these.
        data, loss: batches and loss for "taylor" (cross entropy by default).

    Returns:
        A Step whose changes give, per layer, channels before and after, or why they stay. The model's outputs are
        those of the original with everything zeroed that read the removed channels; this is checked on
        `example_inputs` each time. For normalization over channels, zeroed means left out of the statistics.

    Raises:
        PruningError: an argument is out of range, a name is unknown, or the target cannot be reached.
        ExportError: `torch.export` cannot take the module.
    """
    inputs = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    if not isinstance(module, nn.Module):
        raise PruningError(
            f"pruning works on a torch.nn.Module, not on {type(module).__name__}; prune before exporting"
        )
    if not all(isinstance(item, Tensor) for item in inputs):
        raise PruningError("example_inputs must be tensors, batch first")
    request = Request(
        amount=amount,
        target=target,
        method=method,
        selection=Selection(scope=scope, round_to=round_to),
        include=tuple(include),
        exclude=tuple(exclude),
        data=data,
        loss=loss,
        latency=latency,
        seed=seed,
    )
    with torch.no_grad():
        step = remove_channels(module, inputs, request).step
    flush_denormals(step.model)
    return step
