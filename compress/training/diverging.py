"""When a run is stopped because it loses the accuracy that the network had, or does not learn."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from compress.training.run_state import Run

PARTS = 4  # of an epoch, each of which must be worse than the start
MARGIN = 0.1  # above the start's loss by so much of it: the start was measured on a few batches
FALLING = 0.95  # a loss whose last part is below this share of its first part may come back


def diverged(run: Run, losses: list[float]) -> str:
    """Say that the epoch just finished diverged, or "".

    It did where the training loss stayed above the start's in every quarter of the epoch, does not fall, and what is
    monitored is worse than at the start. `losses` are those of this process, step by step.
    """
    if run.start_loss is None or not losses:
        return ""
    parts = _parts(run, losses)
    limit = run.start_loss + MARGIN * abs(run.start_loss)
    above = min(parts) > limit and (parts[-1] > FALLING * parts[0] or parts[0] <= 0)
    score = run.history[-1].get(run.watched)
    better = run.start is not None and score is not None and run.better(score, run.start[run.watched])
    if not above or better:
        return ""
    mean = sum(parts) / len(parts)
    return (
        f"training diverged: loss {mean:.4g} over epoch {run.epoch}, {run.start_loss:.4g} before it, "
        f"at learning rate {run.options.lr:g}"
    )


def _parts(run: Run, losses: list[float]) -> list[float]:
    """The mean loss of each quarter of the epoch, over all processes."""
    count = min(PARTS, len(losses))
    bounds = [round(index * len(losses) / count) for index in range(count + 1)]
    means = [sum(losses[low:high]) / (high - low) for low, high in itertools.pairwise(bounds)]
    return [value / run.world.size for value in run.world.sum(means)]


def try_instead(run: Run) -> str:
    """What to try next, after a run that did not help."""
    rate = run.options.lr
    return f"try lr {rate / 10:g}" if isinstance(rate, (int, float)) else "try a smaller lr"
