"""Least squares for what pruning took away: each layer that stays gives again what it gave before.

A layer y = W x + b sees less after pruning: x̂, with fewer channels, and not what they were. Its weights are fitted anew
on calibration data. With b in W, samples in the rows of X̂ (a column of ones for b), and in Y what the unpruned layer
gave on the outputs that stay:

    W' = W + (Y − X̂ Wᵀ)ᵀ X̂ (X̂ᵀ X̂ + λ I)⁻¹        λ = RIDGE · mean of the diagonal of X̂ᵀ X̂

so that W stays as it is where the data say nothing. Layers are fitted in the order in which they run, each on what the
fitted ones before it give, so that errors do not add up. No labels, no gradients (He et al. 2017, "Channel Pruning for
Accelerating Very Deep Neural Networks", section 3; Luo et al. 2017, "ThiNet", section 3.4).
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.batches import first_batches, split_batch
from compress.errors import PruningError
from compress.progress import track
from compress.state import evaluating
from compress.steps import Change, Step

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
FORWARDS = frozenset(kind.forward for kind in LAYERS)
RIDGE = 1e-2
MOST_ROWS = 16_384  # samples of one layer: places in images, tokens
MOST_ELEMENTS = 2**27  # of X̂, and of all Y held at once: half a gigabyte each
SAMPLES = 256  # of the data; twice as many change the accuracy by chance only
SAME = 1e-8  # of the outputs' variance: a layer that nothing was taken from


@dataclass(frozen=True)
class _Layer:
    """One layer to fit, as it is in the pruned network."""

    name: str
    part: Any
    calls: int  # in one run of the network
    rows: int  # to draw from each batch
    kept: Tensor | None  # which of the original's outputs stay; None: all

    def drawn(self) -> _Draw:
        return _Draw(self.rows)


class _Draw:
    """Rows drawn at random; two of them draw the same from the same numbers of rows."""

    def __init__(self, rows: int) -> None:
        self.rows, self.generator = rows, torch.Generator().manual_seed(0)

    def __call__(self, total: int) -> Tensor:
        if total <= self.rows:
            return torch.arange(total)
        return torch.randint(total, (self.rows,), generator=self.generator)


class _Stop(Exception):
    """What is wanted of a run has been seen."""


def reconstructed(
    step: Step, original: nn.Module, data: Iterable[Any] | None, outputs: Mapping[str, np.ndarray] | None = None
) -> Step:
    """The same step with its module's weights fitted; see `reconstruct`.

    Raises:
        PruningError: there is no data.
    """
    if data is None:
        raise PruningError("reconstruction fits weights on data; pass --data (data=…), or leave it out")
    module, changes = reconstruct(original, step.model, data, outputs=outputs)
    fitted = [change for change in changes if not change.skipped]
    note = f"weights of {len(fitted)} layers fitted to what they gave before pruning"
    return replace(step, model=module, changes=(*step.changes, *changes), notes=(*step.notes, note))


def reconstruct(
    original: nn.Module, pruned: nn.Module, data: Iterable[Any], *, outputs: Mapping[str, np.ndarray] | None = None
) -> tuple[nn.Module, tuple[Change, ...]]:
    """Return a copy of `pruned` with convolutions and linear layers fitted, and one change for each of them.

    Layers of recurrent networks, inside fused attention, transposed convolutions and those that share their weights stay
    as they are. Each change gives the error of the layer's outputs before and after, as a share of their variance.

    Args:
        original: the network before pruning; layers are matched by name.
        data: batches of inputs; the first 256 samples are used, and held in memory. Targets are not looked at.
        outputs: for each layer that lost outputs, the indices of those that stay.

    Raises:
        PruningError: the data is empty.
    """
    batches = [split_batch(batch)[0] for batch in first_batches(data, SAMPLES)]
    if not batches:
        raise PruningError("weights cannot be reconstructed: the data is empty")
    twin = copy.deepcopy(pruned)
    before, changes = dict(original.named_modules()), []
    layers = [layer for layer in _layers(twin, batches, outputs or {}) if layer.name in before]
    with evaluating(original), evaluating(twin), track(None, "reconstruct", total=len(layers), unit="layer") as bar:
        for wave in _waves(layers):
            wanted = _outputs(original, before, wave, batches)
            for layer in wave:
                changes.append(_fit(twin, layer, batches, wanted.pop(layer.name)))
                bar.update()
    return twin, tuple(change for change in changes if change is not None)


def _layers(
    module: nn.Module, batches: Sequence[tuple[Tensor, ...]], outputs: Mapping[str, np.ndarray]
) -> list[_Layer]:
    """The layers that can be fitted, in running order: called as modules, by their own forward, with their own weights."""
    owners: dict[int, int] = {}
    for part in module.modules():
        for parameter in part._parameters.values():
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    calls: dict[str, int] = {}

    def count(name: str) -> Any:
        return lambda *_: calls.update({name: calls.get(name, 0) + 1})

    named = {
        name: part
        for name, part in module.named_modules()
        if isinstance(part, LAYERS) and type(part).forward in FORWARDS and owners.get(id(part.weight)) == 1
    }
    with _hooks({part: count(name) for name, part in named.items()}), evaluating(module):
        module(*(value[:2] for value in batches[0]))
    found = []
    for name, times in calls.items():
        columns = named[name].weight[0].numel() * getattr(named[name], "groups", 1)
        rows = min(MOST_ROWS, MOST_ELEMENTS // columns) // (len(batches) * times)
        kept = torch.from_numpy(outputs[name]) if name in outputs else None
        found.append(_Layer(name, named[name], times, max(rows, 1), kept))
    return found


def _waves(layers: Sequence[_Layer]) -> Iterator[list[_Layer]]:
    """Cut into runs of layers whose outputs are held in memory together."""
    wave: list[_Layer] = []
    held = 0
    for layer in layers:
        size = len(layer.part.weight) * MOST_ROWS
        if wave and held + size > MOST_ELEMENTS:
            yield wave
            wave, held = [], 0
        wave.append(layer)
        held += size
    if wave:
        yield wave


def _outputs(
    original: nn.Module, before: Mapping[str, nn.Module], wave: Sequence[_Layer], batches: Sequence[tuple[Tensor, ...]]
) -> dict[str, Tensor]:
    """What the layers of a wave gave before pruning, (rows, outputs that stay) each."""
    found: dict[str, list[Tensor]] = {layer.name: [] for layer in wave}

    def watch(layer: _Layer, draw: _Draw) -> Any:
        def hook(part: nn.Module, args: Any, output: Tensor) -> None:
            rows = _last(output, part).flatten(0, -2)
            rows = rows[draw(len(rows))]
            found[layer.name].append(rows if layer.kept is None else rows[:, layer.kept])

        return hook

    with _hooks({before[layer.name]: watch(layer, layer.drawn()) for layer in wave}):
        for batch in batches:
            original(*batch)
    return {name: torch.cat(rows) for name, rows in found.items()}


def _inputs(module: nn.Module, layer: _Layer, batches: Sequence[tuple[Tensor, ...]]) -> Tensor:
    """What the layer sees after pruning, (rows, groups, columns); the run is left when it has seen all."""
    found: list[Tensor] = []
    draw = layer.drawn()
    seen = 0

    def hook(part: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal seen
        found.append(_columns(part, args[0], draw))
        seen += 1
        if seen % layer.calls == 0:
            raise _Stop

    with _hooks({layer.part: hook}):
        for batch in batches:
            with contextlib.suppress(_Stop):
                module(*batch)
    rows = torch.cat(found)
    return rows.unflatten(1, (getattr(layer.part, "groups", 1), -1))


def _columns(part: Any, x: Tensor, draw: _Draw) -> Tensor:
    """The inputs behind drawn outputs of a layer: one row each, in the order of a filter's weights."""
    if isinstance(part, nn.Linear):
        rows = x.flatten(0, -2)
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


def _fit(module: nn.Module, layer: _Layer, batches: Sequence[tuple[Tensor, ...]], wanted: Tensor) -> Change | None:
    """Fit one layer, in place; None where nothing has changed before it."""
    part, x = layer.part, _inputs(module, layer, batches)
    if len(x) != len(wanted):
        return Change(layer.name, "weights kept", "its output has another shape than before", skipped=True)
    groups = x.shape[1]
    x = x.transpose(0, 1)  # (groups, rows, columns)
    weight = part.weight.flatten(1)
    if part.bias is not None:
        x = torch.cat([x, torch.ones(*x.shape[:2], 1)], 2)
        weight = torch.cat([weight, part.bias[:, None]], 1)
    weight = weight.unflatten(0, (groups, -1))
    y = wanted.unflatten(1, (groups, -1)).transpose(0, 1)
    spread = float((wanted - wanted.mean(0)).square().mean())
    error = y - x @ weight.mT
    before = _share(error, spread)
    if before < SAME:
        return None
    step = _ridge(x, error)
    after = _share(error - x @ step, spread)
    if not after < before:  # also where it is not finite
        return Change(layer.name, "weights kept", "the fit is no better", skipped=True)
    fitted = (weight + step.mT).flatten(0, 1)
    if part.bias is not None:
        part.bias.copy_(fitted[:, -1])
        fitted = fitted[:, :-1]
    part.weight.copy_(fitted.reshape(part.weight.shape))
    return Change(layer.name, "weights fitted", values={"error_before": before, "error_after": after})


def _ridge(x: Tensor, error: Tensor) -> Tensor:
    """The step (groups, columns, outputs) of ridge regression from `x` to `error`, by the smaller of the two systems."""
    rows, columns = x.shape[1:]
    weight = RIDGE * x.square().sum((1, 2)).double() / columns
    if rows < columns:
        kernel = (x @ x.mT).double()
        return x.mT @ torch.linalg.solve(_raised(kernel, weight), error.double()).float()
    return torch.linalg.solve(_raised((x.mT @ x).double(), weight), (x.mT @ error).double()).float()


def _raised(matrix: Tensor, weight: Tensor) -> Tensor:
    tiny = torch.finfo(torch.float32).tiny  # inputs that are all zero fit anything
    matrix.diagonal(dim1=1, dim2=2).add_(weight.clamp(min=tiny)[:, None])
    return matrix


def _share(error: Tensor, spread: float) -> float:
    return float(error.square().mean()) / max(spread, 1e-30)


def _last(output: Tensor, part: nn.Module) -> Tensor:
    """The outputs of a layer with its channels last."""
    return output if isinstance(part, nn.Linear) else output.movedim(1, -1)


@contextlib.contextmanager
def _hooks(hooks: Mapping[nn.Module, Any]) -> Iterator[None]:
    handles = [part.register_forward_hook(hook) for part, hook in hooks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
