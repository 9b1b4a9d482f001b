"""Least squares for what pruning took away: each layer that stays gives again what it gave before.

A layer y = W x + b sees less after pruning: x̂, with fewer channels, and not what they were. With samples in the rows of X̂,
and in Y what the unpruned layer gave on the outputs that stay, its weights move by ridge regression on what is missing:

    E = Y − X̂ Wᵀ − b        ΔW, Δb from X̂ to E: see `least_squares`

Δb goes into the layer's bias, or into the running mean of the batch-norm right behind it; a layer with neither takes none.
Where the layer ends a branch that is added to a stream, E is what the sum lacks: Y + S − Ŷ − Ŝ, with S and Ŝ what the branch
is added to, so that it makes up for what earlier layers could not. W stays as it is where the data say nothing, or where rows
held back are no better for it. Layers are fitted in the order in which they run, each on what the fitted ones before it give,
so that errors do not add up. No labels, no gradients (He et al. 2017, "Channel Pruning for Accelerating Very Deep Neural
Networks", sections 3 and 3.3; Luo et al. 2017, "ThiNet", section 3.4).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compress.batches import Batch, first_batches
from compress.errors import PruningError
from compress.progress import track
from compress.pruning.layer_views import Layer, Seen, layers_of, work_of
from compress.pruning.least_squares import Rows, solve
from compress.pruning.lockstep import views
from compress.state import copied, evaluating, own_buffers, slow_attention
from compress.steps import Change, Step

FITTED = "weights fitted"  # the action of a change
FEWEST_ROWS = 32  # fewer say too little about a layer
SAMPLES, MOST_SAMPLES = 256, 1024  # of the data; between the two as many as the work allows
WORK = 2**37  # multiply-accumulates that the unpruned and the pruned network may each take
TINY = 1e-6  # of the largest scale of a batch-norm: an output that counts for nothing behind it keeps its weights
SAME = 1e-10  # of the outputs' mean square: a layer that nothing was taken from


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
        data: batches of inputs, of which the first 256 to 1,024 samples are used, by the network's size. Targets are not
            looked at.
        outputs: for each layer that lost outputs, the indices of those that stay.

    Raises:
        PruningError: the data is empty.
    """
    twin = copied(pruned)
    batches = _samples(data, twin)
    if not batches:
        raise PruningError("weights cannot be reconstructed: the data is empty")
    original = own_buffers(original)
    before, changes = dict(original.named_modules()), []
    with slow_attention(), evaluating(original), evaluating(twin):
        layers = [layer for layer in layers_of(twin, batches, outputs or {}) if layer.name in before]
        with track(None, "reconstruct", total=len(layers), unit="layer") as bar:
            for layer, seen in views(original, twin, layers, batches):
                changes.append(_fit(layer, seen))
                bar.update()
    return twin, tuple(change for change in changes if change is not None)


def _samples(data: Iterable[Any], module: nn.Module) -> list[Batch]:
    found: list[Batch] = []
    left = MOST_SAMPLES
    for batch in first_batches(data, MOST_SAMPLES):
        if not found:
            left = _affordable(module, batch)
        found.append(batch.part(0, left))
        left -= batch.samples
        if left <= 0:
            break
    return found


def _affordable(module: nn.Module, batch: Batch) -> int:
    """How many samples to fit on: small networks take more of them."""
    with slow_attention(), evaluating(module):
        each = work_of(module, batch.part(0, 2)) // min(batch.samples, 2)
    return min(MOST_SAMPLES, max(SAMPLES, WORK // max(each, 1)))


def _fit(layer: Layer, seen: Seen) -> Change | None:
    """Fit one layer, in place; None where nothing has changed before it."""
    part, x, wanted = layer.part, torch.cat(seen.inputs), torch.cat(seen.wanted)
    if len(x) != len(wanted) or wanted.shape[1] != len(part.weight):
        return Change(layer.name, "weights kept", "its output has another shape than before", skipped=True)
    if len(x) < FEWEST_ROWS:
        return Change(layer.name, "weights kept", f"{len(x)} samples are too few to fit it on", skipped=True)
    groups, dtype = x.shape[1], torch.promote_types(part.weight.dtype, torch.float32)
    x, wanted = x.transpose(0, 1).to(dtype), wanted.to(dtype)  # (groups, rows, columns)
    scale = seen.scale.to(dtype).unflatten(0, (groups, 1, -1))
    weight = part.weight.flatten(1).unflatten(0, (groups, -1)).to(dtype)
    error = wanted.unflatten(1, (groups, -1)).transpose(0, 1) - x @ weight.mT
    if part.bias is not None:
        error = error - part.bias.to(dtype).unflatten(0, (groups, 1, -1))
    error = error * scale
    if seen.lacking:
        error = error + torch.cat(seen.lacking).to(dtype).unflatten(1, (groups, -1)).transpose(0, 1)
    wanted = wanted * scale.flatten()
    square = float(wanted.square().mean())
    if float(error.square().mean()) <= SAME * square:
        return None
    rows = Rows(x, error, seen.learn, part.bias is not None or seen.mean is not None)
    found = solve(rows)
    spread = max(float(_centred(wanted[None]).square().mean()), 1e-6 * square)  # outputs that do not vary have none
    before, after = (float(rest.square().mean()) / spread for rest in (error, found.left(rows)))
    if not (after < before and found.helps):  # also where it is not finite
        return Change(layer.name, "weights kept", "the fit is no better", skipped=True)
    inverse = torch.where(scale.abs() > TINY * scale.abs().max(), 1 / scale, torch.zeros_like(scale))
    part.weight.copy_((weight + (found.step * inverse).mT).reshape(part.weight.shape))
    if rows.intercept:
        shift = (found.shift * inverse).flatten()
        if seen.mean is not None:
            seen.mean.sub_(shift)
        else:
            part.bias.add_(shift)
    return Change(layer.name, FITTED, values={"error_before": before, "error_after": after, "ridge": found.ridge})


def _centred(rows: Tensor) -> Tensor:
    return rows - rows.mean(1, keepdim=True)
