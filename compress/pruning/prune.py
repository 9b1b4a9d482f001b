"""The verb: `compress.prune`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Unpack

import torch
from torch import nn

from compress.batches import Batch, example_batch, first_batches, joined
from compress.errors import PruningError
from compress.given import model_of
from compress.options import spelled_out
from compress.pruning.analysis import Analysis, analysed
from compress.pruning.balancing import output_error
from compress.pruning.block_outputs import kept_of_blocks
from compress.pruning.blocks import prune_blocks
from compress.pruning.denormals import flush_denormals
from compress.pruning.healing import Kept, heal
from compress.pruning.masks import MaskRequest, mask_weights
from compress.pruning.reconstruction import reconstructed
from compress.pruning.removal import Reference, Removal, Stage, composed, remove_channels
from compress.pruning.request import PruneFields, PruneRequest
from compress.pruning.surgery import kept_outputs
from compress.steps import Step
from compress.taking import takes

JUDGED = 128  # samples that two prunings are compared on


@takes()
def prune(
    module: nn.Module,
    example_inputs: Any = None,
    request: PruneRequest | None = None,
    **fields: Unpack[PruneFields],
) -> Step:
    """Remove channels (the default), whole blocks, or mask weights: return a pruned copy of the module.

    Args:
        module: any module that `torch.export` takes. It is not touched.
        example_inputs: a batch of 2 in any form of `batches.example_batch`. Masks need none.
        request: what to remove; `fields` are those of `PruneRequest` spelled out: `prune(module, x, amount=0.4)`.
            `target="blocks"` removes residual blocks whole, scored on `data` by what the outputs lose;
            `remove_channels=False` masks weights with zeros instead.

    Returns:
        A Step whose changes give, per layer, channels before and after, or why they stay (for masks: the zeros).

    Raises:
        PruningError: an argument is out of range, a name is unknown, or the target cannot be reached.
        InputError: an option that does not exist; the nearest one is given.
        ExportError: `torch.export` cannot take the module.
    """
    module = model_of(module)
    check_module(module)
    request = spelled_out(PruneRequest, request, fields, "prune")
    if not request.remove_channels:
        return mask_weights(module, MaskRequest.of(request), permanent=request.permanent)
    if request.target == "blocks":
        return _blocks(module, _batch(example_inputs), request)
    return prune_channels(module, example_inputs, request).step


def check_module(module: Any) -> None:
    """Raise PruningError for anything but a module."""
    if not isinstance(module, nn.Module):
        raise PruningError(
            f"pruning works on a torch.nn.Module, not on {type(module).__name__}; prune before exporting"
        )


def _batch(inputs: Any) -> Batch:
    if inputs is None:
        raise PruningError("removing channels needs example_inputs: tensors, batch first, a batch of 2")
    return example_batch(inputs)


def _blocks(module: nn.Module, inputs: Batch, request: PruneRequest) -> Step:
    step = prune_blocks(
        module,
        inputs,
        amount=request.amount,
        include=request.include,
        exclude=request.exclude,
        data=request.data,
    )
    if request.reconstruct:
        step = reconstructed(step, module, request.data)
    step = healed(step, module, request)
    flush_denormals(step.model)
    return step


def prune_channels(
    module: nn.Module,
    example_inputs: Any,
    request: PruneRequest | None = None,
    *,
    stage: Stage | None = None,
    analysis: Analysis | None = None,
    **fields: Unpack[PruneFields],
) -> Removal:
    """Remove channels, really: a copy with smaller layers, and what went by its labels.

    The pruned module's outputs are those of the original with everything zeroed that read the removed channels;
    this is checked on `example_inputs` each time. For normalization over channels, zeroed means left out of the
    statistics. With `reconstruct` the result then differs from the zeroed original, for the better.
    `analysis` is that of an earlier call on the same module, with the same request but for amount and scope.

    Raises: as `prune`.
    """
    check_module(module)
    inputs = _batch(example_inputs)
    request = spelled_out(PruneRequest, request, fields, "prune")
    if request.scope == "auto":
        return _nearer(module, inputs, request, stage, analysis)
    with torch.no_grad():
        removal = remove_channels(module, inputs, request, stage, analysis)
    if request.reconstruct:
        reference = _reference(removal, stage)
        removal = replace(removal, step=reconstructed(removal.step, reference.module, request.data, reference.kept))
    return _finished(removal, request)


def _reference(removal: Removal, stage: Stage | None) -> Reference:
    """What the pruned module is fitted to, and which outputs of it are left."""
    kept = kept_outputs(removal.source, removal.channels, removal.removed)
    first = stage.reference if stage is not None and stage.reference is not None else Reference(removal.source)
    return replace(first, kept=composed(first.kept, kept))


def _finished(removal: Removal, request: PruneRequest) -> Removal:
    if request.heals:
        outputs = kept_of_blocks(removal.channels, removal.removed)
        removal = replace(removal, step=healed(removal.step, removal.source, request, outputs))
    flush_denormals(removal.step.model)
    return removal


def _nearer(
    module: nn.Module, inputs: Batch, request: PruneRequest, stage: Stage | None, analysis: Analysis | None
) -> Removal:
    """Prune by uniform and by balanced shares; go on with the one whose outputs are nearer to the whole network's."""
    assert request.data is not None
    batches = list(first_batches(request.data, JUDGED))
    if not batches:
        raise PruningError("what each layer costs cannot be measured: the data is empty")
    samples = joined(batches).part(0, JUDGED)
    with torch.no_grad():
        analysis = analysis or analysed(module, inputs, request)
    whole = stage.reference.module if stage is not None and stage.reference is not None else module
    found: dict[str, tuple[float, Removal]] = {}
    for scope in ("uniform", "balanced"):
        removal = prune_channels(
            module, inputs, replace(request, scope=scope, heal_s=0.0, heal_steps=None), stage=stage, analysis=analysis
        )
        found[scope] = output_error(removal.step.model, whole, samples), removal
    scope = min(found, key=lambda name: found[name][0])
    errors = ", ".join(f"{name} {error:.3g}" for name, (error, _) in found.items())
    note = f"shares of the layers: {scope} (the outputs' error, of their variance: {errors})"
    removal = found[scope][1]
    step = replace(removal.step, notes=(*removal.step.notes, note))
    return _finished(replace(removal, step=step), request)


def healed(step: Step, teacher: nn.Module, request: PruneRequest, outputs: Mapping[str, Kept] | None = None) -> Step:
    """The same step with its module healed for as long, or for as many steps, as the request says; see `healing.heal`."""
    inputs = request.inputs_to_heal_on
    if not request.heals or inputs is None:
        return step
    budget: dict[str, Any] = {"steps": request.heal_steps} if request.heal_steps else {"budget_s": request.heal_s}
    done = heal(step.model, teacher, inputs, **budget, outputs=outputs, seed=request.seed)
    remembered = replace(step, model=done.model, changes=(*step.changes, *done.changes))
    return replace(remembered, notes=(*step.notes, *done.notes))
