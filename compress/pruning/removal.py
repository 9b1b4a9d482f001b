"""Real channel removal: choose, cut, hold to the zeroed original."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import nn

from compress.batches import Batch
from compress.errors import PruningError
from compress.metadata import attributes, remember
from compress.pruning.analysis import Analysis, analysed, cost_of, locks
from compress.pruning.attributes import follow_literals
from compress.pruning.channels import Channels, Family
from compress.pruning.cost import CostModel
from compress.pruning.labels import FIXED
from compress.pruning.request import PruneRequest
from compress.pruning.selection import Selection, choose, group_numbers, reach
from compress.pruning.surgery import kept_indices, remove
from compress.pruning.verifying import Agreement, Failure, check, fewest, nearest_passing, passing
from compress.steps import Change, Step

ATTEMPTS = 40  # each locks at least one family, so this bounds models whose forward fixes many sizes
FIXED_SIZES = "sizes fixed"
NARROW = 12  # sizes that are narrowed down to their families, which takes tries; further ones lock all in the forward


@dataclass(frozen=True)
class Reference:
    """The network that weights are fitted to, and which of its layers' outputs stay in the one that is pruned further."""

    module: nn.Module
    kept: Mapping[str, np.ndarray] = field(default_factory=dict)


def composed(first: Mapping[str, np.ndarray], then: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Indices that stay after two removals, one after the other, in the numbers before the first."""
    both = {name: first[name][kept] if name in first else kept for name, kept in then.items()}
    return {**first, **both}


@dataclass(frozen=True)
class Stage:
    """Where a run of several steps stands. In one shot: nowhere in particular."""

    original: Mapping[Any, int] | None = None  # `selection.widths` at the start, of which the amount is a fraction
    may_be_nothing: bool = False  # a step too small for a multiple of channels waits for the next
    shares: Callable[[float], Mapping[str, float]] | None = None  # of each family, for an amount, with scope balanced
    reference: Reference | None = None  # None: the module that is pruned


@dataclass(frozen=True)
class Removal:
    """What was done: the step for the user, and the classes that went, by which it can be checked."""

    step: Step
    channels: Channels
    removed: np.ndarray
    error: float  # largest difference from the zeroed original, relative to the largest output
    source: nn.Module  # what was pruned: the module handed in, its computed weights baked


def remove_channels(
    module: nn.Module,
    inputs: Batch,
    request: PruneRequest,
    stage: Stage | None = None,
    analysis: Analysis | None = None,
) -> Removal:
    """Make a smaller copy of `module`; see `compress.prune`. Several removals may share one `analysis`."""
    stage = stage or Stage()
    if request.target == "blocks":
        raise PruningError("blocks are removed by compress.prune in one step; a schedule takes channels or masks")
    analysis = analysis or analysed(module, inputs, request)
    module, channels, scores, notes = analysis.module, analysis.channels, analysis.scores, list(analysis.notes)
    shares = analysis.shares if request.scope == "balanced" and request.amount else None
    patches: set[str] = set()
    for _ in range(ATTEMPTS):
        removed, short = _select(module, channels, scores, request, replace(stage, shares=shares))
        if removed.size == 0:
            break
        candidate, verdict = _attempt(module, channels, removed, inputs, patches)
        if isinstance(verdict, Agreement):
            if short:
                raise PruningError(f"{short}; {locks(channels)}")
            notes.extend(_notes(channels, removed, request))
            step = Step("prune", candidate, tuple(_changes(channels, removed)), tuple(notes))
            return Removal(step, channels, removed, verdict.error, module)
        if verdict.path not in patches:
            patches.add(verdict.path)
            continue
        channels = _lock_failure(module, channels, removed, inputs, patches, verdict)
    if request.amount == 0 or stage.may_be_nothing:
        removed = np.zeros(0, dtype=np.int64)
        same = remove(module, channels, removed)
        step = Step("prune", same, tuple(_changes(channels, removed)), ("nothing was to be removed",))
        return Removal(step, channels, removed, 0.0, module)
    raise PruningError(
        f"amount {request.amount:g} of {request.target} removes no channel here{_rounding(channels, request)}; "
        f"{locks(channels)}"
    )


def _rounding(channels: Channels, request: PruneRequest) -> str:
    """What keeps the layers whole where nothing locks them."""
    if not any(family.classes.size for family in channels.families):
        return ""
    multiple = request.round_to
    kept = f"multiples of {multiple}" if multiple else "multiples of 16, of 8 in narrow layers,"
    return f": layers keep {kept} channels, so give a larger amount, or a smaller --round-to"


def _select(
    module: nn.Module, channels: Channels, scores: np.ndarray, request: PruneRequest, stage: Stage
) -> tuple[np.ndarray, str]:
    """Choose what to remove; and where the target cannot be reached, the sentence that says so."""
    selection = Selection(request.scope, request.round_to, stage.original, stage.shares)

    def pick(amount: float) -> np.ndarray:
        return choose(channels, scores, amount, selection)

    if (request.target == "channels" and stage.shares is None) or request.amount == 0:
        return pick(request.amount), ""
    cost, steps = cost_of(module, channels, request)
    groups = None if request.target == "latency" else group_numbers(channels)
    whole = cost(np.zeros(0, dtype=np.int64))
    removed, left = reach(cost, pick, (1 - request.amount) * whole, steps=steps, groups=groups)
    if left <= (1 - request.amount) * whole * (1.03 if request.target == "latency" else 1.0):
        return removed, ""
    return removed, (
        f"{100 * request.amount:g} % of {request.target} cannot be removed: "
        f"the closest reached is {100 * (1 - left / whole):.0f} %"
    )


def _attempt(
    module: nn.Module, channels: Channels, removed: np.ndarray, inputs: Batch, patches: set[str]
) -> tuple[nn.Module, Agreement | Failure]:
    candidate = remove(module, channels, removed)
    follow_literals(candidate, module, channels, removed, patches)
    remember(candidate, attributes(module), kept_indices(channels, removed))  # before a forward changes attributes
    return candidate, check(candidate, module, channels, removed, inputs)


def _lock_failure(
    module: nn.Module,
    channels: Channels,
    removed: np.ndarray,
    inputs: Batch,
    patches: set[str],
    failure: Failure,
) -> Channels:
    """Lock as few whole families as let the forward get past the module where it did not follow."""
    place = failure.path or "the model's forward"

    def gets_past(locked: Sequence[Family]) -> bool:
        fewer = np.setdiff1d(removed, _with_heads(channels, locked))
        try:
            _, verdict = _attempt(module, channels, fewer, inputs, patches)
        except PruningError:  # a parameter that would lose single elements then
            return False
        return isinstance(verdict, Agreement) or verdict.path != failure.path

    families = passing(channels, failure.path, removed)
    if not families:
        raise PruningError(f"pruned model fails in {place}: {failure.reason}; exclude the layers before it (--exclude)")
    known = {reason for reason in channels.locked.values() if reason.startswith(FIXED_SIZES)}
    if not gets_past(families):  # more than this one thing is wrong
        families = nearest_passing(channels, failure.path, removed)
    elif len(known) < NARROW:
        families = fewest(families, gets_past)
    reason = f"{FIXED_SIZES} in the forward before {place}: {failure.reason}"
    rest = channels.without(dict.fromkeys(_with_heads(channels, families).tolist(), reason))
    # A forward with its own count of heads need not take it from the stream, which may then go alone.
    return replace(rest, ties=[tie for tie in rest.ties if not rest.locked.keys() >= set(tie.heads.tolist())])


def _with_heads(channels: Channels, families: Sequence[Family]) -> np.ndarray:
    """The classes of `families`, and the heads that keep pace with a stream among them."""
    classes = np.concatenate([family.classes for family in families])
    followers = [tie.heads for tie in channels.ties if np.isin(tie.stream, classes).any()]
    return np.unique(np.concatenate([classes, *followers]))


def _changes(channels: Channels, removed: np.ndarray) -> Iterable[Change]:
    """One change for each layer whose outputs shrink, and one for each family that stays."""
    gone = channels.gone(removed)
    for name, dim in channels.producers:
        roots = channels.axes[name, dim]
        before, after = roots.size, int((~gone[roots]).sum())
        layer = name.partition(".parametrizations.")[0] if ".parametrizations." in name else name.rpartition(".")[0]
        layer = layer or name
        values = {"before": before, "after": after, "parameter": name}
        if after < before:
            yield Change(layer, f"{before} → {after} channels", values=values)
        else:
            reason = next((channels.locked[int(r)] for r in roots if int(r) in channels.locked), "")
            reason = reason or ("input of the model" if FIXED in roots else "rounding leaves it whole")
            yield Change(layer, f"{before} channels kept", reason, skipped=True, values=values)


def counts(channels: Channels, removed: np.ndarray) -> dict[str, int]:
    """MACs of one sample, and parameters, without the classes in `removed`."""
    model = CostModel(channels)
    return {"MACs": model.macs(removed), "parameters": model.parameters(removed)}


def count_notes(before: dict[str, int], after: dict[str, int]) -> list[str]:
    return [
        f"{what} {old:,} → {after[what]:,} ({100 * after[what] / max(old, 1):.1f} % left)"
        for what, old in before.items()
    ]


def _notes(channels: Channels, removed: np.ndarray, request: PruneRequest) -> list[str]:
    before, after = counts(channels, removed[:0]), counts(channels, removed)
    notes = count_notes(before, after)
    reasons = sorted({reason for reason in channels.locked.values() if reason.startswith(FIXED_SIZES)})
    beyond = beyond_target(before, after, request.target, request.amount, request.round_to)
    return [*notes, *(f"kept whole: {reason}" for reason in reasons), *beyond]


FAR = 0.03  # of the whole: an overshoot of the target beyond this gets a note


def beyond_target(
    before: dict[str, int], after: dict[str, int], target: str, amount: float, round_to: int | None
) -> list[str]:
    """Say where rounding to the kernel's multiples took more than was asked for: accuracy pays for it."""
    name = {"macs": "MACs", "parameters": "parameters"}.get(target)
    multiple = round_to or 16
    if name is None or multiple == 1:
        return []
    gone = 1 - after[name] / max(before[name], 1)
    if gone - amount <= FAR:
        return []
    return [
        f"{100 * gone:.0f} % of the {name} went, where {100 * amount:.0f} % were asked for: layers keep "
        f"multiples of {multiple} channels, which run faster; --round-to {max(1, multiple // 4)} comes nearer"
    ]
