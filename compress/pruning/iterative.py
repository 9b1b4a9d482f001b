"""Pruning in steps, with fine-tuning in between."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from compress.batches import reiterable
from compress.pruning.cost import CostModel
from compress.pruning.masks import MaskRequest, check_masks, make_permanent, mask_weights
from compress.pruning.naming import as_patterns
from compress.pruning.prune import prune_channels
from compress.pruning.reconstruction import FITTED, fitted_note
from compress.pruning.removal import Removal, beyond_target, count_notes, counts
from compress.pruning.schedule import next_fraction, schedule
from compress.pruning.selection import widths
from compress.steps import Change, Step

# Called after each step with the pruned module, the step's number (from 1) and the number of steps;
# returns the module to go on with, or None for the one it was given.
Between = Callable[[nn.Module, int, int], "nn.Module | None"]


def prune_iteratively(
    module: nn.Module,
    example_inputs: Any,
    *,
    amount: float = 0.5,
    schedule_kind: str = "agp",
    steps: int = 5,
    between: Between | None = None,
    remove_channels: bool = True,
    **options: Any,
) -> Step:
    """Prune to `amount` in `steps` steps; `between` fine-tunes after each of them.

    Each step takes its share of what the step before left, so `amount` is of the module handed in, as in one shot.
    `options` are those of `compress.prune`. Masks stay attached between the steps, and are made permanent at the end.
    With `reconstruct`, each step is fitted to the network that it found.

    Raises:
        PruningError: as `compress.prune`; or the schedule is unknown.
    """
    options |= {name: as_patterns(options[name]) for name in ("include", "exclude") if name in options}
    totals = schedule(schedule_kind, amount, steps)
    if not remove_channels:
        check_masks(module, MaskRequest(amount=amount, **options))
        return _masks(module, totals, between, options)
    if options.get("data") is not None:
        options["data"] = reiterable(options["data"])
    uniform = options.get("target", "channels") == "channels" and options.get("scope", "uniform") == "uniform"
    left, notes, current = 1.0, [], module
    first: dict[str, int] = {}
    original: dict[Any, int] = {}
    layers: dict[str, Change] = {}
    fitted: dict[str, Change] = {}
    for number, total in enumerate(totals, start=1):
        removal = prune_channels(
            current,
            example_inputs,
            amount=total if uniform else next_fraction(total, left),
            may_be_nothing=len(totals) > 1,
            original=original or None,
            **options,
        )
        if number == 1:
            first = counts(removal.channels, removal.removed[:0])
            original = widths(removal.channels) if uniform else {}
        left *= _share_left(removal, current, options)
        fitted |= {change.layer: change for change in removal.step.changes if change.action == FITTED}
        channels = [change for change in removal.step.changes if "parameter" in change.values]
        layers = {change.values["parameter"]: _since_start(layers, change) for change in channels}
        notes.append(
            f"step {number} of {len(totals)}: {100 * (1 - left):.1f} % of {options.get('target', 'channels')} gone"
        )
        current = removal.step.model
        if between is not None:
            current = between(current, number, len(totals)) or current
    last = counts(removal.channels, removal.removed)
    beyond = beyond_target(first, last, options.get("target", "channels"), amount, options.get("round_to"))
    kept = [note for note in removal.step.notes if note.startswith("kept whole")]
    said = fitted_note(fitted.values())
    return Step(
        "prune",
        current,
        (*layers.values(), *fitted.values()),
        (*notes, *count_notes(first, last), *kept, *beyond, *said),
    )


def _share_left(removal: Removal, module: nn.Module, options: dict[str, Any]) -> float:
    """What the step left of its target, as a fraction of what it found."""
    target, none = options.get("target", "channels"), removal.removed[:0]
    if target == "latency":
        return float(options["latency"](removal.step.model) / options["latency"](module))
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


def _masks(module: nn.Module, totals: list[float], between: Between | None, options: dict[str, Any]) -> Step:
    current, done = module, 0.0
    step: Step | None = None
    whole = isinstance(totals[-1], int)
    for number, total in enumerate(totals, start=1):
        # torch.nn.utils.prune counts a fraction, and a number, of what earlier masks left.
        amount = round(total) - round(done) if whole else next_fraction(total, 1.0 - done)
        step = mask_weights(current, MaskRequest(**{**options, "amount": amount}), permanent=False)
        current, done = step.model, total
        if between is not None:
            current = between(current, number, len(totals)) or current
    assert step is not None
    return Step("mask", make_permanent(current), step.changes, step.notes)
