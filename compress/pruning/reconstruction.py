"""Least squares for what pruning took away: each layer that stays gives again what it gave before.

A layer y = W x + b sees less after pruning: x̂, with fewer channels, and not what they were. With samples in the rows of X̂,
and in Y what the unpruned layer gave on the outputs that stay, its weights move by ridge regression on what is missing:

    E = Y − X̂ Wᵀ − b
    ΔW = Ẽᵀ X̃ (X̃ᵀ X̃ + λ I)⁻¹        Δb = mean of E − X̂ ΔWᵀ        λ = RIDGE · mean of the diagonal of X̃ᵀ X̃

X̃ and Ẽ are X̂ and E less their means; a layer without b takes them as they are. W stays as it is where the data say
nothing. Layers are fitted in the order in which they run, each on what the fitted ones before it give, so that errors do
not add up. No labels, no gradients (He et al. 2017, "Channel Pruning for Accelerating Very Deep Neural Networks",
section 3; Luo et al. 2017, "ThiNet", section 3.4).
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.batches import Batch, call, first_batches
from compress.errors import PruningError
from compress.progress import track
from compress.state import copied, evaluating, own_buffers, slow_attention
from compress.steps import Change, Step

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
FITTED = "weights fitted"  # the action of a change
RIDGE = 0.1
FEWEST_ROWS = 32  # fewer say too little about a layer
MOST_ROWS = 16_384  # samples of one layer: places in images, tokens
MOST_ELEMENTS = 2**27  # of X̂, and of all Y held at once: half a gigabyte each
SAMPLES = 256  # of the data; twice as many change the accuracy by chance only
SAME = 1e-10  # of the outputs' mean square: a layer that nothing was taken from


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
    notes = (*step.notes, *fitted_note(changes))
    return replace(step, model=module, changes=(*step.changes, *changes), notes=notes)


def fitted_note(changes: Iterable[Change]) -> list[str]:
    """One sentence that counts the fitted layers; none where there is none."""
    count = sum(change.action == FITTED for change in changes)
    return [f"weights of {count} layer{'s' * (count > 1)} fitted to what they gave before pruning"] if count else []


def reconstruct(
    original: nn.Module, pruned: nn.Module, data: Iterable[Any], *, outputs: Mapping[str, np.ndarray] | None = None
) -> tuple[nn.Module, tuple[Change, ...]]:
    """Return a copy of `pruned` with convolutions and linear layers fitted, and one change for each of them.

    Layers of recurrent networks, inside fused attention, transposed convolutions and those that share their weights stay
    as they are. Each change gives the error of the layer's outputs before and after, as a share of their variance.

    Args:
        original: the network before pruning; layers are matched by name.
        data: batches of inputs, of which the first 256 samples are used. Targets are not looked at.
        outputs: for each layer that lost outputs, the indices of those that stay.

    Raises:
        PruningError: the data is empty.
    """
    batches = _samples(data)
    if not batches:
        raise PruningError("weights cannot be reconstructed: the data is empty")
    twin = copied(pruned)
    original = own_buffers(original)
    before, changes = dict(original.named_modules()), []
    with slow_attention(), evaluating(original), evaluating(twin):
        layers = [layer for layer in _layers(twin, batches, outputs or {}) if layer.name in before]
        with track(None, "reconstruct", total=len(layers), unit="layer") as bar:
            for wave in _waves(layers):
                wanted = _outputs(original, before, wave, batches)
                for layer in wave:
                    changes.append(_fit(twin, layer, batches, wanted.pop(layer.name)))
                    bar.update()
    return twin, tuple(change for change in changes if change is not None)


def _samples(data: Iterable[Any]) -> list[Batch]:
    found, left = [], SAMPLES
    for batch in first_batches(data, SAMPLES):
        found.append(batch.part(0, left))
        left -= batch.samples
    return found


def _layers(module: nn.Module, batches: Sequence[Batch], outputs: Mapping[str, np.ndarray]) -> list[_Layer]:
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
    with _hooks({part: count(name) for name, part in named.items()}):
        call(module, batches[0].part(0, 2))
    found = []
    for name, times in calls.items():
        if name in unbatched:
            continue
        columns = named[name].weight[0].numel() * getattr(named[name], "groups", 1)
        rows = min(MOST_ROWS, MOST_ELEMENTS // columns) // (len(batches) * times)
        kept = torch.from_numpy(outputs[name]) if name in outputs else None
        found.append(_Layer(name, named[name], times, max(rows, 1), kept))
    return found


def _is_plain(part: Any, owners: Mapping[int, int]) -> bool:
    """Whether it computes what its class says, with weights that nobody else has."""
    kind = next((kind for kind in LAYERS if isinstance(part, kind)), None)
    if kind is None or "forward" in vars(part) or part._parameters.get("weight") is None:
        return False
    own = (type(part).forward, getattr(type(part), "_conv_forward", None))
    plain = own == (kind.forward, getattr(kind, "_conv_forward", None))
    return plain and all(owners[id(value)] == 1 for value in part._parameters.values() if value is not None)


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
    original: nn.Module, before: Mapping[str, nn.Module], wave: Sequence[_Layer], batches: Sequence[Batch]
) -> dict[str, Tensor]:
    """What the layers of a wave gave before pruning, (rows, outputs that stay) each."""
    found: dict[str, list[Tensor]] = {layer.name: [] for layer in wave}

    def watch(layer: _Layer, draw: _Draw) -> Any:
        def hook(part: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
            last = output if isinstance(part, nn.Linear) else output.movedim(1, -1)
            rows = last.reshape(-1, last.shape[-1])
            rows = rows[draw(len(rows))]
            found[layer.name].append(rows if layer.kept is None else rows[:, layer.kept])

        return hook

    with _hooks({before[layer.name]: watch(layer, layer.drawn()) for layer in wave}):
        for batch in batches:
            call(original, batch)
    return {name: torch.cat(rows) for name, rows in found.items()}


def _inputs(module: nn.Module, layer: _Layer, batches: Sequence[Batch]) -> Tensor:
    """What the layer sees after pruning, (rows, groups, columns); the run is left when it has seen all."""
    found: list[Tensor] = []
    draw = layer.drawn()
    seen = 0

    def hook(part: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Tensor) -> None:
        nonlocal seen
        found.append(_columns(part, args[0] if args else kwargs["input"], draw))
        seen += 1
        if seen % layer.calls == 0:
            raise _Stop

    with _hooks({layer.part: hook}):
        for batch in batches:
            with contextlib.suppress(_Stop):
                call(module, batch)
    rows = torch.cat(found)
    return rows.unflatten(1, (getattr(layer.part, "groups", 1), -1))


def _columns(part: Any, x: Tensor, draw: _Draw) -> Tensor:
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


def _fit(module: nn.Module, layer: _Layer, batches: Sequence[Batch], wanted: Tensor) -> Change | None:
    """Fit one layer, in place; None where nothing has changed before it."""
    part, x = layer.part, _inputs(module, layer, batches)
    if len(x) != len(wanted) or wanted.shape[1] != len(part.weight):
        return Change(layer.name, "weights kept", "its output has another shape than before", skipped=True)
    if len(x) < FEWEST_ROWS:
        return Change(layer.name, "weights kept", f"{len(x)} samples are too few to fit it on", skipped=True)
    groups, dtype = x.shape[1], torch.promote_types(part.weight.dtype, torch.float32)
    x, wanted = x.transpose(0, 1).to(dtype), wanted.to(dtype)  # (groups, rows, columns)
    weight = part.weight.flatten(1).unflatten(0, (groups, -1)).to(dtype)
    error = wanted.unflatten(1, (groups, -1)).transpose(0, 1) - x @ weight.mT
    if part.bias is not None:
        error = error - part.bias.to(dtype).unflatten(0, (groups, 1, -1))
    square = float(wanted.square().mean())
    if float(error.square().mean()) <= SAME * square:
        return None
    centred = (_centred(x), _centred(error)) if part.bias is not None else (x, error)
    step = _ridge(*centred)
    left = error - x @ step
    shift = left.mean(1, keepdim=True) if part.bias is not None else torch.zeros((), dtype=dtype)
    spread = max(float(_centred(wanted[None]).square().mean()), 1e-6 * square)  # outputs that do not vary have none
    before, after = (float(rest.square().mean()) / spread for rest in (error, left - shift))
    if not after < before:  # also where it is not finite
        return Change(layer.name, "weights kept", "the fit is no better", skipped=True)
    part.weight.copy_((weight + step.mT).reshape(part.weight.shape))
    if part.bias is not None:
        part.bias.add_(shift.flatten())
    return Change(layer.name, FITTED, values={"error_before": before, "error_after": after})


def _centred(rows: Tensor) -> Tensor:
    return rows - rows.mean(1, keepdim=True)


def _ridge(x: Tensor, error: Tensor) -> Tensor:
    """The step (groups, columns, outputs) of ridge regression from `x` to `error`, by the smaller of the two systems."""
    rows, columns = x.shape[1:]
    weight = RIDGE * x.square().sum((1, 2)).double() / columns
    if rows < columns:
        kernel = (x @ x.mT).double()
        return x.mT @ torch.linalg.solve(_raised(kernel, weight), error.double()).to(x.dtype)
    return torch.linalg.solve(_raised((x.mT @ x).double(), weight), (x.mT @ error).double()).to(x.dtype)


def _raised(matrix: Tensor, weight: Tensor) -> Tensor:
    tiny = torch.finfo(torch.float32).tiny  # inputs that are all zero fit anything
    matrix.diagonal(dim1=1, dim2=2).add_(weight.clamp(min=tiny)[:, None])
    return matrix


@contextlib.contextmanager
def _hooks(hooks: Mapping[nn.Module, Any]) -> Iterator[None]:
    # Before the user's own hooks, which may change what the layer gives.
    handles = [part.register_forward_hook(hook, prepend=True, with_kwargs=True) for part, hook in hooks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
