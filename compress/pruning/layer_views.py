"""What single layers see after pruning, and what they gave before: rows for least squares."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.batches import Batch, call

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
MOST_ROWS = 65_536  # samples of one layer: places in images, tokens
WIDE_ROWS = 16_384  # the same, where columns are so many that each row is dear
MOST_PRODUCTS = 2**36  # rows times columns squared, beyond which a layer is such
MOST_ELEMENTS = 2**27  # of X̂, and of all Y held at once: half a gigabyte each


@dataclass(frozen=True)
class Layer:
    """One layer to fit, as it is in the pruned network."""

    name: str
    part: Any
    calls: int  # in one run of the network
    rows: int  # to draw from each batch
    kept: Tensor | None  # which of the original's outputs stay; None: all

    def drawn(self) -> Draw:
        return Draw(self.rows)


class Draw:
    """Rows drawn at random; two of them draw the same from the same numbers of rows."""

    def __init__(self, rows: int) -> None:
        self.rows, self.generator = rows, torch.Generator().manual_seed(0)

    def __call__(self, total: int) -> Tensor:
        if total <= self.rows:
            return torch.arange(total)
        return torch.randint(total, (self.rows,), generator=self.generator)


@dataclass
class Seen:
    """What one layer sees after pruning, and what it gave before, batch by batch.

    `inputs` are (rows, groups, columns), `wanted` (rows, outputs that stay). Behind a batch-norm (`mean`: its running one)
    errors count as it scales them. `lacking` is what else the stream lacks that the layer's branch is added to, (rows, outputs).
    """

    inputs: list[Tensor]
    wanted: list[Tensor]
    scale: Tensor
    mean: Tensor | None = None
    lacking: list[Tensor] = field(default_factory=list)

    @property
    def learn(self) -> int:
        """Rows of the batches that choose the weights: all but the last quarter; all of them where there is one batch."""
        return (
            sum(len(rows) for rows in self.wanted[: len(self.wanted) - len(self.wanted) // 4])
            if len(self.wanted) > 3
            else 0
        )


class _Stop(Exception):
    """What is wanted of a run has been seen."""


def layers_of(module: nn.Module, batches: Sequence[Batch], outputs: Mapping[str, np.ndarray]) -> list[Layer]:
    """The layers that can be fitted, in running order: called as modules, by their own forward, with their own weights."""
    owners = Counter(id(value) for part in module.modules() for value in part._parameters.values())
    calls: Counter[str] = Counter()
    unbatched: set[str] = set()  # convolutions of one sample without a batch: no place for more samples

    def count(name: str) -> Any:
        def hook(part: Any, args: Any, kwargs: Any, output: Any) -> None:
            calls[name] += 1
            if not isinstance(part, nn.Linear) and output.dim() != len(part.kernel_size) + 2:
                unbatched.add(name)

        return hook

    named = {name: part for name, part in module.named_modules() if _is_plain(part, owners)}
    with hooks({part: count(name) for name, part in named.items()}):
        call(module, batches[0].part(0, 2))
    found = []
    for name, times in calls.items():
        if name in unbatched:
            continue
        columns = named[name].weight[0].numel() * getattr(named[name], "groups", 1)
        rows = most_rows(columns) // (len(batches) * times)
        kept = torch.from_numpy(outputs[name]) if name in outputs else None
        found.append(Layer(name, named[name], times, max(rows, 1), kept))
    return found


def work_of(module: nn.Module, batch: Batch) -> int:
    """Multiply-accumulates of the convolutions and linear layers that run on a batch."""
    total = 0

    def count(part: Any, args: Any, kwargs: Any, output: Any) -> None:
        nonlocal total
        total += output.numel() * part.weight[0].numel()

    with hooks({part: count for part in module.modules() if isinstance(part, LAYERS)}):
        call(module, batch)
    return total


def most_rows(columns: int) -> int:
    """Rows that one layer is fitted on at most."""
    dear = max(MOST_PRODUCTS // columns**2, WIDE_ROWS)
    return min(MOST_ROWS, MOST_ELEMENTS // columns, dear)


def _is_plain(part: Any, owners: Mapping[int, int]) -> bool:
    """Whether it computes what its class says, with weights that no other layer shares."""
    kind = next((kind for kind in LAYERS if isinstance(part, kind)), None)
    if kind is None or "forward" in vars(part) or part._parameters.get("weight") is None:
        return False
    own = (type(part).forward, getattr(type(part), "_conv_forward", None))
    plain = own == (kind.forward, getattr(kind, "_conv_forward", None))
    return plain and all(owners[id(value)] == 1 for value in part._parameters.values() if value is not None)


def views_by_hooks(
    original: nn.Module, twin: nn.Module, layers: Sequence[Layer], batches: Sequence[Batch]
) -> Iterator[tuple[Layer, Seen]]:
    """What each layer sees, by a run for each as far as to it; the caller fits it before the next is asked for."""
    before = dict(original.named_modules())
    for wave in waves(layers):
        wanted = outputs_before(original, before, wave, batches)
        for layer in wave:
            yield (
                layer,
                Seen(inputs_after(twin, layer, batches), wanted.pop(layer.name), torch.ones(len(layer.part.weight))),
            )


def waves(layers: Sequence[Layer]) -> Iterator[list[Layer]]:
    """Cut into runs of layers whose outputs are held in memory together."""
    wave: list[Layer] = []
    elements = 0
    for layer in layers:
        size = len(layer.part.weight) * MOST_ROWS
        if wave and elements + size > MOST_ELEMENTS:
            yield wave
            wave, elements = [], 0
        wave.append(layer)
        elements += size
    if wave:
        yield wave


def outputs_before(
    original: nn.Module, before: Mapping[str, nn.Module], wave: Sequence[Layer], batches: Sequence[Batch]
) -> dict[str, list[Tensor]]:
    """What the layers of a wave gave before pruning, (rows, outputs that stay) of each batch."""
    found: dict[str, list[Tensor]] = {layer.name: [] for layer in wave}

    def watch(layer: Layer, draw: Draw) -> Any:
        def hook(part: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
            last = output if isinstance(part, nn.Linear) else output.movedim(1, -1)
            rows = last.reshape(-1, last.shape[-1])
            rows = rows[draw(len(rows))]
            found[layer.name].append(rows if layer.kept is None else rows[:, layer.kept])

        return hook

    with hooks({before[layer.name]: watch(layer, layer.drawn()) for layer in wave}):
        for batch in batches:
            call(original, batch)
    return found


def inputs_after(module: nn.Module, layer: Layer, batches: Sequence[Batch]) -> list[Tensor]:
    """What the layer sees after pruning, (rows, groups, columns) of each call; the run is left when it has seen all."""
    found: list[Tensor] = []
    draw = layer.drawn()
    seen = 0

    def hook(part: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Tensor) -> None:
        nonlocal seen
        found.append(columns_of(part, args[0] if args else kwargs["input"], draw))
        seen += 1
        if seen % layer.calls == 0:
            raise _Stop

    with hooks({layer.part: hook}):
        for batch in batches:
            with contextlib.suppress(_Stop):
                call(module, batch)
    return [rows.unflatten(1, (getattr(layer.part, "groups", 1), -1)) for rows in found]


def columns_of(part: Any, x: Tensor, draw: Draw) -> Tensor:
    """The inputs behind drawn outputs of a layer: one row each, in the order of a filter's weights."""
    if isinstance(part, nn.Linear):
        rows = x.reshape(-1, x.shape[-1])
        return rows[draw(len(rows))]
    dims = len(part.kernel_size)
    mode = "constant" if part.padding_mode == "zeros" else part.padding_mode
    x = F.pad(x, part._reversed_padding_repeated_twice, mode=mode)
    for dim in range(dims):  # views: nothing is copied until the rows are drawn
        span = part.dilation[dim] * (part.kernel_size[dim] - 1) + 1
        x = x.unfold(2 + dim, span, part.stride[dim])[..., :: part.dilation[dim]]
    x = x.movedim(1, 1 + dims)  # (N, places…, C, kernel…)
    places = draw(x.shape[: 1 + dims].numel())
    return x[torch.unravel_index(places, x.shape[: 1 + dims])].flatten(1)


@contextlib.contextmanager
def hooks(watches: Mapping[nn.Module, Any]) -> Iterator[None]:
    # Before the user's own hooks, which may change what the layer gives.
    handles = [part.register_forward_hook(hook, prepend=True, with_kwargs=True) for part, hook in watches.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
