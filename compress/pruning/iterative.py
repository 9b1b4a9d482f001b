"""Pruning in steps, with fine-tuning in between."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Unpack

from torch import nn

from compress.options import spelled_out
from compress.pruning.cost import CostModel
from compress.pruning.masks import MaskRequest, check_masks, make_permanent, mask_weights
from compress.pruning.prune import healed, prune_channels
from compress.pruning.reconstruction import FITTED, fitted_note
from compress.pruning.removal import Reference, Removal, Stage, beyond_target, composed, count_notes, counts
from compress.pruning.request import PruneFields, PruneRequest
from compress.pruning.schedule import next_fraction, schedule
from compress.pruning.selection import widths
from compress.pruning.surgery import kept_outputs
from compress.steps import Change, Step
from compress.taking import takes

# Called after each step with the pruned module, the step's number (from 1) and the number of steps;
# returns the module to go on with, or None for the one it was given.
Between = Callable[[nn.Module, int, int], "nn.Module | None"]


@takes()
def prune_iteratively(
    module: nn.Module,
    example_inputs: Any,
    request: PruneRequest | None = None,
    *,
    schedule_kind: str = "agp",
    steps: int = 5,
    between: Between | None = None,
    **fields: Unpack[PruneFields],
) -> Step:
    """Prune to the request's amount in `steps` steps; `between` fine-tunes after each of them.

    Each step takes its share of what the step before left, so the amount is of the module handed in, as in one shot.
    `fields` are those of `PruneRequest` spelled out. Masks stay attached between the steps, and are made permanent at the
    end. With `reconstruct`, each step is fitted to the module handed in; once `between` has trained, to what it returned.

    Raises:
        PruningError: as `compress.prune`; or the schedule is unknown.
        InputError: an option that does not exist.
    """
    request = spelled_out(PruneRequest, request, fields, "prune_iteratively")
    totals = schedule(schedule_kind, request.amount, steps)
    if not request.remove_channels:
        check_masks(module, MaskRequest.of(request))
        return _masks(module, totals, between, request)
    uniform = request.target == "channels" and request.scope == "uniform"
    left, notes, current = 1.0, [], module
    reference = Reference(module)
    first: dict[str, int] = {}
    original: dict[Any, int] = {}
    layers: dict[str, Change] = {}
    fitted: dict[str, Change] = {}
    for number, total in enumerate(totals, start=1):
        removal = prune_channels(
            current,
            example_inputs,
            replace(request, heal_s=0.0, heal_steps=None, amount=total if uniform else next_fraction(total, left)),
            stage=Stage(original or None, may_be_nothing=len(totals) > 1, reference=reference),
        )
        if number == 1:
            first = counts(removal.channels, removal.removed[:0])
            original = widths(removal.channels) if uniform else {}
        left *= _share_left(removal, current, request)
        fitted |= {change.layer: change for change in removal.step.changes if change.action == FITTED}
        channels = [change for change in removal.step.changes if "parameter" in change.values]
        layers = {change.values["parameter"]: _since_start(layers, change) for change in channels}
        notes.append(f"step {number} of {len(totals)}: {100 * (1 - left):.1f} % of {request.target} gone")
        current = removal.step.model
        outputs = kept_outputs(removal.source, removal.channels, removal.removed)
        reference = Reference(reference.module, composed(reference.kept, outputs))
        trained = between(current, number, len(totals)) if between is not None else None
        if trained is not None and trained is not current:
            current, reference = trained, Reference(trained)
    last = counts(removal.channels, removal.removed)
    beyond = beyond_target(first, last, request.target, request.amount, request.round_to)
    kept = [note for note in removal.step.notes if note.startswith("kept whole")]
    fit_note = fitted_note(fitted.values())
    changes = (*layers.values(), *fitted.values())
    step = Step("prune", current, changes, (*notes, *count_notes(first, last), *kept, *beyond, *fit_note))
    return healed(step, module, request)


def _share_left(removal: Removal, module: nn.Module, request: PruneRequest) -> float:
    """What the step left of its target, as a fraction of what it found."""
    target, none = request.target, removal.removed[:0]
    if target == "latency":
        assert request.latency is not None
        return float(request.latency(removal.step.model) / request.latency(module))
    if target == "channels":
        free = [family for family in removal.channels.families if family.classes.size]
        return 1.0 - removal.removed.size / max(sum(family.total for family in free), 1)
    model = CostModel(removal.channels)
    count = model.macs if target == "macs" else model.parameters
    return count(removal.removed) / max(count(none), 1)


def _since_start(layers: dict[str, Change], change: Change) -> Change:
    """The change of one layer over all steps so far."""
    name, after = change.values["parameter"], change.values["after"]
    earlier = layers.get(name)
    before = earlier.values["before"] if earlier else change.values["before"]
    values = {"before": before, "after": after, "parameter": name}
    if before == after:
        return Change(change.layer, change.action, change.reason, skipped=True, values=values)
    return Change(change.layer, f"{before} → {after} channels", values=values)


def _masks(module: nn.Module, totals: list[float], between: Between | None, request: PruneRequest) -> Step:
    current, done = module, 0.0
    step: Step | None = None
    whole = isinstance(totals[-1], int)
    for number, total in enumerate(totals, start=1):
        # torch.nn.utils.prune counts a fraction, and a number, of what earlier masks left.
        amount = round(total) - round(done) if whole else next_fraction(total, 1.0 - done)
        step = mask_weights(current, replace(MaskRequest.of(request), amount=amount), permanent=False)
        current, done = step.model, total
        if between is not None:
            current = between(current, number, len(totals)) or current
    assert step is not None
    return Step("mask", make_permanent(current), step.changes, step.notes)
