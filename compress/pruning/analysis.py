"""What is known of a network before any amount is chosen: which channels belong together, scores, what each family costs."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from torch import nn

from compress.batches import Batch, first_batches, joined
from compress.errors import PruningError
from compress.pruning.baking import bake
from compress.pruning.balancing import MOST as MOST_SAMPLES
from compress.pruning.balancing import curves_of, prices
from compress.pruning.channels import Channels, find_channels
from compress.pruning.cost import CostModel
from compress.pruning.patterns import check_patterns, matches
from compress.pruning.request import PruneRequest
from compress.pruning.scores import Given, score_classes
from compress.pruning.surgery import remove

COMPUTED = re.compile("weight computed in|weight is computed from")  # reasons of layers that baking may free


@dataclass(frozen=True)
class Analysis:
    """One network, ready for removals of any amount and scope: `request` gives all the rest."""

    module: nn.Module  # what is pruned: the one handed in, its computed weights baked
    channels: Channels
    scores: np.ndarray
    notes: tuple[str, ...]
    request: PruneRequest

    @cached_property
    def shares(self) -> Callable[[float], dict[str, float]]:
        """For an amount from 0 to 1, the share of each family that goes at one price for all; see `balancing`."""
        return _shares(self.module, self.channels, self.scores, self.request)


def analysed(module: nn.Module, inputs: Batch, request: PruneRequest) -> Analysis:
    """Find and score what can be removed of `module`.

    Raises:
        ExportError: `torch.export` cannot take the module.
        PruningError: nothing of it can be removed, or a name is unknown.
    """
    channels = find_channels(module, inputs)
    baked: tuple[str, ...] = ()
    if request.bake and any(COMPUTED.search(reason) for reason in channels.locked.values()):
        module, baked = bake(module, channels.program)
        channels = find_channels(module, inputs) if baked else channels
    channels = _restrict(channels, module, request)
    if not any(family.classes.size for family in channels.families):
        raise PruningError(f"no channel of this model can be removed; {locks(channels)}")
    given = Given(request.data, request.loss, request.seed)
    scores, notes = score_classes(module, channels, request.method, given)
    return Analysis(module, channels, scores, (*notes, *_baked_note(baked)), request)


def _baked_note(names: Sequence[str]) -> list[str]:
    if not names:
        return []
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return [f"weights computed from others are stored as they came out (bake=False leaves them): {shown}"]


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


def _shares(
    module: nn.Module, channels: Channels, scores: np.ndarray, request: PruneRequest
) -> Callable[[float], dict[str, float]]:
    """For an amount from 0 to 1, the share of each family that goes at one price for all; see `balancing`."""
    assert request.data is not None
    batches = list(first_batches(request.data, MOST_SAMPLES))
    if not batches:
        raise PruningError("what each layer costs cannot be measured: the data is empty")
    target = "macs" if request.target == "latency" else request.target
    cost, _ = cost_of(module, channels, replace(request, target=target))
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


def cost_of(module: nn.Module, channels: Channels, request: PruneRequest) -> tuple[Callable[[np.ndarray], float], int]:
    """What is left without some classes, in the unit of the request's target, and the tries that a search may take."""
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


def locks(channels: Channels) -> str:
    """Say in a few words what keeps channels where they are."""
    kinds: dict[str, list[str]] = {}
    for family in channels.families:
        fixed = [
            channels.locked[int(label)]
            for label in _all_labels(channels, family.producers)
            if int(label) in channels.locked
        ]
        if fixed:
            kinds.setdefault(fixed[0], []).append(family.name)
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
