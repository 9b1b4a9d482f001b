"""A learning rate found by trying: a short run whose rate grows step by step (Smith: Cyclical Learning Rates, 2017, section 3.3).

The smoothed loss falls, then rises as steps get too long. A tenth of the rate at its lowest point is taken; where it never
falls by much (a network that is trained already), a tenth of the largest rate at which it has not risen.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator
from pathlib import Path

from compress.counting import counted
from compress.errors import TrainingError
from compress.training import checkpoints
from compress.training.criterion import Fed
from compress.training.epoch import DivergedError, groups_of, train_mode, train_step
from compress.training.metrics import Tally
from compress.training.run_state import Run

STEPS = 80
RANGES = {"sgd": (1e-5, 10.0)}  # others:
RANGE = (1e-6, 1.0)
SMOOTHING = 0.8  # share of the past in the smoothed loss
BLOWN_UP = 4.0  # times the lowest smoothed loss at which the test ends
FELL = 0.05  # share of the start's loss by which it must fall to count
ROSE = 0.05
SAFETY = 10.0


def find_rate(run: Run) -> tuple[float, str]:
    """Return the rate that a trial run finds, and a sentence; `run` is used up, random states are given back.

    Raises:
        TrainingError: the loss is not finite at the smallest rate.
    """
    low, high = RANGES.get(run.options.optimizer, RANGE)
    states = run.random()
    try:
        rates, losses = _curve(run, [low * (high / low) ** (step / (STEPS - 1)) for step in range(STEPS)])
    finally:
        run.restore_random(states)
    if not losses:
        raise TrainingError("the range test finds no learning rate: the loss is not finite at the smallest one")
    rate = chosen_rate(rates, losses)
    return rate, f"learning rate {rate:.2g}, found by {counted(len(losses), 'step')} of growing rates from {low:g} on"


def chosen_rate(rates: list[float], losses: list[float]) -> float:
    """The rate that a curve of smoothed losses says (rule at the top), to two digits."""
    lowest = min(range(len(losses)), key=losses.__getitem__)
    if losses[lowest] < losses[0] - FELL * abs(losses[0]):
        found = rates[lowest]
    else:
        limit = losses[0] + ROSE * abs(losses[0])
        found = rates[max(index for index, value in enumerate(losses) if value <= limit)]
    return float(f"{found / SAFETY:.2g}")


def _curve(run: Run, rates: list[float]) -> tuple[list[float], list[float]]:
    train_mode(run.module)
    smooth, past, weight = [], 0.0, 0.0
    for rate, group in zip(rates, _endless(run)):
        for part in run.optimizer.param_groups:
            part["lr"] = rate
        try:
            value = train_step(run, group, Tally(run.criterion))
        except DivergedError:
            break
        (value,) = run.world.sum([value / run.world.size])
        past, weight = SMOOTHING * past + (1 - SMOOTHING) * value, SMOOTHING * weight + (1 - SMOOTHING)
        smooth.append(past / weight)  # without the bias of a past that begins at zero
        if not math.isfinite(smooth[-1]) or smooth[-1] > BLOWN_UP * abs(min(smooth)) + 1e-12:
            smooth.pop()
            break
    return rates[: len(smooth)], smooth


def _endless(run: Run) -> Iterator[list[Fed]]:
    for epoch in itertools.count():
        found = False
        for group in groups_of(run, epoch):
            found = True
            yield group
        if not found:
            return


def saved_rate(folder: Path | None) -> float | None:
    """The learning rate of the run that `folder` holds, or None."""
    if folder is None:
        return None
    with contextlib.suppress(Exception):  # a faulty checkpoint is reported when it is resumed from
        return float(checkpoints.read(folder / "checkpoints" / "last.pt")["options"]["lr"])
    return None
