"""Which channels of each family go, for an amount within a scope."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from compress.pruning.channels import Channels, Family, Tie

MOST = 0.9  # of a family, with the global scope
DEFAULT_MULTIPLE = 16  # the int8 and float kernels of x86 work on 16 channels at once


@dataclass(frozen=True)
class Selection:
    """What to choose by. `round_to` None: multiples of 16 where the layer is wide enough, of 8, 4, 2 in narrow ones."""

    scope: str = "uniform"  # or "global", or "balanced"
    round_to: int | None = None
    # In a run of several steps: `widths` at the start, of which the amount is then a fraction.
    original: Mapping[Any, int] | None = None
    shares: Callable[[float], Mapping[str, float]] | None = None  # balanced: amount → share of each family, by name


def widths(channels: Channels) -> dict[Any, int]:
    """The channels of each family by its name, and of each of its layers by (parameter, dimension)."""
    layers = {producer: channels.axes[producer].size for producer in channels.producers}
    return layers | {family.name: family.channels for family in channels.families}


def choose(channels: Channels, scores: np.ndarray, amount: float, selection: Selection) -> np.ndarray:
    """Return the roots of the classes to remove so that about `amount` of the channels go.

    Uniform: the fraction of every family. Global: the lowest scores anywhere, families rounded afterwards. Balanced: what
    `shares` says.
    """
    return removal_of(channels, _wishes(channels.families, scores, amount, selection), scores, selection)


def removal_of(channels: Channels, wishes: list[float], scores: np.ndarray, selection: Selection) -> np.ndarray:
    """Return the roots of the classes to remove so that about `wishes` of each family go: the lowest scores first."""
    bundles, tied = _bundles(channels)
    removed = []
    for place, (family, wish) in enumerate(zip(channels.families, wishes)):
        if place not in tied:
            count = _rounded(family, wish, selection)
            removed.append(_lowest(family, scores, count))
    for bundle in bundles:
        removed.extend(_tied_removal(channels, bundle, wishes, scores, selection))
    return np.concatenate(removed) if removed else np.zeros(0, dtype=np.int64)


def _lowest(family: Family, scores: np.ndarray, count: int) -> np.ndarray:
    order = np.argsort(scores[family.classes], kind="stable")
    return family.classes[order[:count]]


def _wishes(families: list[Family], scores: np.ndarray, amount: float, selection: Selection) -> list[float]:
    if selection.shares is not None:
        shares = selection.shares(amount)
        least = min(shares.values(), default=amount)  # of what could not be measured alone
        return [min(shares.get(family.name, least), MOST) * family.total for family in families]
    if selection.scope == "uniform":
        original = selection.original or {}
        return [family.total - (1 - amount) * _classes_at_first(family, original) for family in families]
    free = [family.classes for family in families if family.classes.size]
    if not free:
        return [0.0] * len(families)
    pooled = np.concatenate([scores[classes] for classes in free])
    weights = np.concatenate([np.full(family.classes.size, family.width) for family in families if family.classes.size])
    # Equal scores (batch-norm as initialized) are taken from all families alike, not from the first ones.
    within = np.concatenate([np.arange(classes.size) / classes.size for classes in free])
    order = np.lexsort((within, pooled))
    share = np.cumsum(weights[order]) / weights.sum()
    chosen = np.zeros(pooled.size, dtype=bool)
    chosen[order[: int(np.searchsorted(share, amount, side="right"))]] = True
    counts = iter(np.add.reduceat(chosen, np.cumsum([0, *(classes.size for classes in free[:-1])])))
    # A layer emptied to a channel or two is a bottleneck, whatever the scores say.
    return [min(float(next(counts)), MOST * f.total) if f.classes.size else 0.0 for f in families]


def _classes_at_first(family: Family, original: Mapping[Any, int]) -> float:
    """What it had then in classes of now: a class may have been a whole group, and is a place in every group.

    A family that has come apart from another since then is known by its widest layer.
    """
    by_layer = max((original[producer] for producer in family.producers if producer in original), default=0)
    return original.get(family.name, by_layer or family.channels) / family.width


def _most_removable(family: Family) -> int:
    return family.classes.size - (1 if family.classes.size == family.total else 0)


def _rounded(family: Family, wish: float, selection: Selection) -> int:
    """The number of classes to remove that is nearest to the wish and leaves a multiple of channels."""
    most = _most_removable(family)
    if most <= 0 or wish <= 0:
        return 0
    counts = np.arange(most + 1)
    left = family.axis_width - counts * family.width
    if selection.round_to is not None:
        fits = counts[(left % selection.round_to == 0) | (counts == 0)]
    else:
        multiple = DEFAULT_MULTIPLE
        while multiple > 1 and multiple * 2 > family.axis_width:
            multiple //= 2
        fits = counts[left % multiple == 0]
        while not (fits > 0).any() and multiple > 1:
            multiple //= 2
            fits = counts[left % multiple == 0]
    if not fits.size:
        return 0
    return int(fits[np.argmin(np.abs(fits - wish))])  # of two equally near, the one that keeps more


@dataclass(frozen=True)
class _Bundle:
    stream: int | None  # place of the family, or None where it is not one whole family
    heads: tuple[tuple[int, int], ...]  # (place, unit)


def _bundles(channels: Channels) -> tuple[list[_Bundle], set[int]]:
    """Group attention by the stream that it reads; all of a bundle keep pace or stay."""
    place_of = {int(label): place for place, family in enumerate(channels.families) for label in family.classes}
    by_stream: dict[bytes, list[Tie]] = {}
    for tie in channels.ties:
        by_stream.setdefault(tie.stream.tobytes(), []).append(tie)
    bundles, tied = [], set()
    for ties in by_stream.values():
        stream = _whole_family(channels, place_of, ties[0].stream)
        heads = [(_whole_family(channels, place_of, tie.heads), tie.unit) for tie in ties]
        known = tuple((place, unit) for place, unit in heads if place is not None)
        sound = (
            stream is not None and len(known) == len(heads) and len({p for p, _ in known} | {stream}) == len(known) + 1
        )
        bundles.append(_Bundle(stream if sound else None, known))
        for tie in ties:
            for labels in (tie.stream, tie.heads):
                tied |= {place_of[int(label)] for label in labels if int(label) in place_of}
    return bundles, tied


def _whole_family(channels: Channels, place_of: dict[int, int], roots: np.ndarray) -> int | None:
    places = {place_of.get(int(label)) for label in roots}
    if len(places) != 1 or None in places:
        return None
    place = places.pop()
    assert place is not None
    family = channels.families[place]
    return place if family.classes.size == roots.size == family.total else None


def _tied_removal(
    channels: Channels, bundle: _Bundle, wishes: list[float], scores: np.ndarray, selection: Selection
) -> list[np.ndarray]:
    if bundle.stream is None:
        return []
    stream = channels.families[bundle.stream]
    unit = math.lcm(*(unit for _, unit in bundle.heads))
    if selection.round_to is not None:
        unit = math.lcm(unit, selection.round_to)
    sizes = np.arange(unit, stream.total + 1, unit)
    if not sizes.size or wishes[bundle.stream] <= 0:
        return []
    sizes = np.append(sizes, stream.total) if sizes[-1] != stream.total else sizes
    wish = stream.total - wishes[bundle.stream]
    keep = int(sizes[::-1][np.argmin(np.abs(sizes[::-1] - wish))])
    removed = [_lowest(stream, scores, stream.total - keep)]
    for place, width in bundle.heads:
        family = channels.families[place]
        removed.append(_lowest(family, scores, family.total - keep // width))
    return removed


def reach(
    cost: Callable[[np.ndarray], float],
    pick: Callable[[float], np.ndarray],
    goal: float,
    *,
    steps: int = 18,
    groups: np.ndarray | None = None,
) -> tuple[np.ndarray, float]:
    """Find the least removal whose cost is at most `goal`; return it and its cost.

    Bisection over the amount; then, since rounding moves many families at once, the last move is made family by
    family (`groups` gives each class's number), each taken back where the goal is met without it.
    Where even the greatest amount costs more, that one is returned.
    """
    low, high = 0.0, 1.0
    best, less = pick(high), pick(low)
    reached = cost(best)
    if reached > goal:
        return best, reached
    for _ in range(steps):
        middle = (low + high) / 2
        removed = pick(middle)
        value = cost(removed)
        if value <= goal:
            high, best, reached = middle, removed, value
        else:
            low, less = middle, removed
    if groups is None:
        return best, reached
    moved = np.unique(groups[np.setxor1d(best, less)])
    for group in moved.tolist():
        trial = np.concatenate([best[groups[best] != group], less[groups[less] == group]])
        value = cost(trial)
        if reached < value <= goal:
            best, reached = trial, value
    return best, reached


def group_numbers(channels: Channels) -> np.ndarray:
    """Number the families for every class; those that keep pace with each other share a number."""
    numbers = np.full(channels.root.size, -1)
    for place, family in enumerate(channels.families):
        numbers[family.classes] = place
    bundles, _ = _bundles(channels)
    for bundle in bundles:
        if bundle.stream is not None:
            for place, _ in bundle.heads:
                numbers[channels.families[place].classes] = bundle.stream
    return numbers
