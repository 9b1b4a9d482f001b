"""Real channel removal: choose, cut, hold to the zeroed original."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import nn

from compress.batches import Batch, first_batches, joined
from compress.errors import PruningError
from compress.metadata import attributes, remember
from compress.pruning.baking import bake
from compress.pruning.balancing import MOST as MOST_SAMPLES
from compress.pruning.balancing import curves_of, prices
from compress.pruning.channels import Channels, Family, find_channels
from compress.pruning.cost import CostModel
from compress.pruning.labels import FIXED
from compress.pruning.naming import check_patterns, matches
from compress.pruning.patching import follow_literals
from compress.pruning.request import PruneRequest
from compress.pruning.scores import score_classes
from compress.pruning.selection import Selection, choose, group_numbers, reach
from compress.pruning.surgery import kept_indices, remove
from compress.pruning.verifying import Agreement, Failure, check, fewest, nearest_passing, passing
from compress.steps import Change, Step

ATTEMPTS = 40  # each locks at least one family, so this bounds models whose forward fixes many sizes
FIXED_SIZES = "sizes fixed"
COMPUTED = re.compile("weight computed in|weight is computed from")  # reasons of layers that baking may free
NARROW = 12  # sizes that are narrowed down to their families, which takes tries; further ones lock all in the forward


@dataclass(frozen=True)
class Stage:
    """Where a run of several steps stands. In one shot: nowhere in particular."""

    original: Mapping[Any, int] | None = None  # `selection.widths` at the start, of which the amount is a fraction
    may_be_nothing: bool = False  # a step too small for a multiple of channels waits for the next
    shares: Callable[[float], Mapping[str, float]] | None = None  # of each family, for an amount, with scope balanced


@dataclass(frozen=True)
class Removal:
    """What was done: the step for the user, and the classes that went, by which it can be checked."""

    step: Step
    channels: Channels
    removed: np.ndarray
    error: float  # largest difference from the zeroed original, relative to the largest output
    source: nn.Module  # what was pruned: the module handed in, its computed weights baked


def remove_channels(module: nn.Module, inputs: Batch, request: PruneRequest, stage: Stage | None = None) -> Removal:
    """Make a smaller copy of `module`; see `compress.prune`."""
    stage = stage or Stage()
    if request.target == "blocks":
        raise PruningError("blocks are removed by compress.prune in one step; a schedule takes channels or masks")
    channels = find_channels(module, inputs)
    baked: tuple[str, ...] = ()
    if request.bake and any(COMPUTED.search(reason) for reason in channels.locked.values()):
        module, baked = bake(module, channels.program)
        channels = find_channels(module, inputs) if baked else channels
    channels = _restrict(channels, module, request)
    if not any(family.classes.size for family in channels.families):
        raise PruningError(f"no channel of this model can be removed; {_locks(channels)}")
    scores, notes = score_classes(
        module, channels, request.method, data=request.data, loss=request.loss, seed=request.seed
    )
    notes = [*notes, *_baked_note(baked)]
    shares = _shares(module, channels, scores, request) if request.scope == "balanced" and request.amount else None
    patches: set[str] = set()
    for _ in range(ATTEMPTS):
        removed, short = _select(module, channels, scores, request, replace(stage, shares=shares))
        if removed.size == 0:
            break
        candidate, verdict = _attempt(module, channels, removed, inputs, patches)
        if isinstance(verdict, Agreement):
            if short:
                raise PruningError(f"{short}; {_locks(channels)}")
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
        f"{_locks(channels)}"
    )


def _baked_note(names: Sequence[str]) -> list[str]:
    if not names:
        return []
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return [f"weights computed from others are stored as they came out (bake=False leaves them): {shown}"]


def _rounding(channels: Channels, request: PruneRequest) -> str:
    """What keeps the layers whole where nothing locks them."""
    if not any(family.classes.size for family in channels.families):
        return ""
    multiple = request.round_to
    kept = f"multiples of {multiple}" if multiple else "multiples of 16, of 8 in narrow layers,"
    return f": layers keep {kept} channels, so give a larger amount, or a smaller --round-to"


def _restrict(channels: Channels, module: nn.Module, request: PruneRequest) -> Channels:
    """Lock the families of layers that the user left out, or did not name."""
    check_patterns(module, *request.include, *request.exclude)
    reasons: dict[int, str] = {}
    for family in channels.families:
        layers = [name.rpartition(".")[0] for name, _ in family.producers]
        if any(matches(layer, request.exclude) for layer in layers):
            reason = "excluded by the user"
        elif request.include and not any(matches(layer, request.include) for layer in layers):
            reason = "not among the layers asked for"
        else:
            continue
        reasons.update(dict.fromkeys(family.classes.tolist(), reason))
    return channels.without(reasons) if reasons else channels


def _select(
    module: nn.Module, channels: Channels, scores: np.ndarray, request: PruneRequest, stage: Stage
) -> tuple[np.ndarray, str]:
    """Choose what to remove; and where the target cannot be reached, the sentence that says so."""
    selection = Selection(request.scope, request.round_to, stage.original, stage.shares)

    def pick(amount: float) -> np.ndarray:
        return choose(channels, scores, amount, selection)

    if (request.target == "channels" and stage.shares is None) or request.amount == 0:
        return pick(request.amount), ""
    cost, steps = _cost(module, channels, request)
    groups = None if request.target == "latency" else group_numbers(channels)
    whole = cost(np.zeros(0, dtype=np.int64))
    removed, left = reach(cost, pick, (1 - request.amount) * whole, steps=steps, groups=groups)
    if left <= (1 - request.amount) * whole * (1.03 if request.target == "latency" else 1.0):
        return removed, ""
    return removed, (
        f"{100 * request.amount:g} % of {request.target} cannot be removed: "
        f"the closest reached is {100 * (1 - left / whole):.0f} %"
    )


def _shares(
    module: nn.Module, channels: Channels, scores: np.ndarray, request: PruneRequest
) -> Callable[[float], dict[str, float]]:
    """For an amount from 0 to 1, the share of each family that goes at one price for all; see `balancing`."""
    assert request.data is not None
    batches = list(first_batches(request.data, MOST_SAMPLES))
    if not batches:
        raise PruningError("what each layer costs cannot be measured: the data is empty")
    target = "macs" if request.target == "latency" else request.target
    cost, _ = _cost(module, channels, replace(request, target=target))
    curves = curves_of(module, channels, scores, joined(batches), cost)
    price = prices(curves)
    return lambda amount: {name: curve.share(price(amount)) for name, curve in curves.items()}


def _width(channels: Channels) -> Callable[[np.ndarray], float]:
    """Counts the channels that stay of the families that can lose any, each by its widest layer."""
    total = sum(family.channels for family in channels.families if family.classes.size)
    widths = np.zeros(channels.root.size)
    for family in channels.families:
        widths[family.classes] = family.width
    return lambda removed: float(total - widths[removed].sum())


def _cost(module: nn.Module, channels: Channels, request: PruneRequest) -> tuple[Callable[[np.ndarray], float], int]:
    model = CostModel(channels)
    if request.target == "channels":
        return _width(channels), 18
    if request.target == "macs":
        return model.macs, 18
    if request.target == "parameters":
        return model.parameters, 18
    if request.latency is None:
        raise PruningError("target 'latency' needs a way to measure it; pass latency=function(module) → milliseconds")
    measure, known = request.latency, {}

    def latency(removed: np.ndarray) -> float:
        key = np.sort(removed).tobytes()
        if key not in known:
            known[key] = measure(remove(module, channels, removed) if removed.size else module)
        return known[key]

    return latency, 6


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
    held = channels.without(dict.fromkeys(_with_heads(channels, families).tolist(), reason))
    # A forward with its own count of heads need not take it from the stream, which may then go alone.
    return replace(held, ties=[tie for tie in held.ties if not held.locked.keys() >= set(tie.heads.tolist())])


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


FAR = 0.03  # of the whole: what goes beyond the target by more is told


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


def _locks(channels: Channels) -> str:
    """Say in a few words what keeps channels where they are."""
    kinds: dict[str, list[str]] = {}
    for family in channels.families:
        held = [
            channels.locked[int(label)]
            for label in _all_labels(channels, family.producers)
            if int(label) in channels.locked
        ]
        if held:
            kinds.setdefault(held[0], []).append(family.name)
    shown = [
        f"{names[0]}{f' (+{len(names) - 1})' if len(names) > 1 else ''}: {reason}" for reason, names in kinds.items()
    ]
    return "locked: " + ("; ".join(shown[:6]) if shown else "nothing")


def _all_labels(channels: Channels, producers: tuple[tuple[str, int], ...]) -> np.ndarray:
    return (
        np.unique(np.concatenate([channels.axes[key] for key in producers]))
        if producers
        else np.zeros(0, dtype=np.int64)
    )
