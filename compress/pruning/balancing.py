"""How much from where: each family of channels pays for what it saves.

For each family alone, a few shares of it are removed and the outputs compared with the whole network's:

    e(s) = |ŷ − y|² / var(y)      c(s) = what is saved, in MACs (parameters, channels)

One price λ for all then says how much goes from each: the share s that makes e(s) − λ·c(s) least. A higher price removes
more, and the price is raised until the target is met. (Lagrangian allocation; curves as in Li et al. 2017, section 4.)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from compress.batches import Batch, call
from compress.progress import track
from compress.pruning.channels import Channels
from compress.pruning.selection import Selection, removal_of
from compress.pruning.surgery import remove
from compress.pruning.verifying import tensors_of
from compress.state import evaluating, slow_attention

SHARES = (0.25, 0.5, 0.75, 0.9)
GRID = np.linspace(0.0, SHARES[-1], 37)
SMOOTH = 9  # points of the grid
SECONDS = 90.0  # for all curves; fewer samples where a network is slow
FEWEST, MOST = 8, 64  # samples


@dataclass(frozen=True)
class Curve:
    """Of one family: errors of the outputs and savings, over `GRID` of the share that goes."""

    errors: np.ndarray
    savings: np.ndarray

    def share(self, price: float) -> float:
        """The share that is worth removing at a price."""
        return float(GRID[int(np.argmin(self.errors - price * self.savings))])


def curves_of(
    module: nn.Module, channels: Channels, scores: np.ndarray, data: Batch, cost: Callable[[np.ndarray], float]
) -> dict[str, Curve]:
    """Measure the curve of every family that can lose channels, by its name.

    A family whose removal alone stops the forward (sizes written there) gets none; the least share of the others serves it.
    """
    selection = Selection(round_to=1)
    places = [place for place, family in enumerate(channels.families) if family.classes.size]
    whole = cost(np.zeros(0, dtype=np.int64))
    found: dict[str, Curve] = {}
    with slow_attention(), evaluating(module):
        samples = _affordable(module, data, len(places) * len(SHARES))
        wanted = tensors_of(call(module, samples))
        for place in track(places, "what each family costs", unit="family"):
            points = []
            for share in SHARES:
                wishes = [0.0] * len(channels.families)
                wishes[place] = share * channels.families[place].total
                removed = removal_of(channels, wishes, scores, selection)
                points.append((_error(remove(module, channels, removed), samples, wanted), whole - cost(removed)))
            errors, savings = (np.array([0.0, *values]) for values in zip(*points, strict=True))
            if np.isfinite(errors).all() and savings.max() > 0:
                errors = _convex(np.interp(GRID, (0.0, *SHARES), np.maximum.accumulate(errors)))
                found[channels.families[place].name] = Curve(errors, np.interp(GRID, (0.0, *SHARES), savings))
    return found


def _convex(errors: np.ndarray) -> np.ndarray:
    """The greatest convex curve below, its slope rising gradually: with the price, shares then move without jumps."""
    hull = [0]
    for place in range(1, errors.size):
        while len(hull) > 1 and (errors[hull[-1]] - errors[hull[-2]]) * (place - hull[-1]) >= (
            errors[place] - errors[hull[-1]]
        ) * (hull[-1] - hull[-2]):
            hull.pop()
        hull.append(place)
    slopes = np.diff(np.interp(np.arange(errors.size), hull, errors[hull]))
    padded = np.pad(slopes, SMOOTH // 2, mode="edge")
    return np.concatenate([[0.0], np.cumsum(np.convolve(padded, np.ones(SMOOTH) / SMOOTH, mode="valid"))])


def prices(curves: Mapping[str, Curve]) -> Callable[[float], float]:
    """The price for an amount from 0 (nothing goes) to 1 (all that may), even steps of its logarithm apart."""
    ratios = np.concatenate([curve.errors[1:] / np.maximum(curve.savings[1:], 1e-9) for curve in curves.values()])
    ratios = ratios[ratios > 0]
    low, high = (float(ratios.min()) / 100, float(ratios.max()) * 100) if ratios.size else (1e-12, 1.0)
    return lambda amount: low * (high / low) ** amount if amount > 0 else 0.0


def _affordable(module: nn.Module, data: Batch, runs: int) -> Batch:
    probe = data.part(0, min(FEWEST, data.samples))
    start = time.perf_counter()
    call(module, probe)
    each = (time.perf_counter() - start) / probe.samples
    return data.part(0, int(min(MOST, max(FEWEST, SECONDS / max(runs * each, 1e-9)))))


def output_error(candidate: nn.Module, module: nn.Module, data: Batch) -> float:
    """How far the outputs are from those of `module`, as a share of their variance."""
    with slow_attention(), evaluating(module):
        return _error(candidate, data, tensors_of(call(module, data)))


def _error(candidate: nn.Module, samples: Batch, wanted: list[torch.Tensor]) -> float:
    try:
        with evaluating(candidate):
            given = tensors_of(call(candidate, samples))
    except Exception:  # whatever a forward raises that does not follow
        return float("inf")
    total = 0.0
    for a, b in zip(given, wanted, strict=False):
        if b.is_floating_point() and a.shape == b.shape:
            total += float((a.double() - b.double()).square().mean() / b.double().var().clamp(min=1e-12))
    return total
