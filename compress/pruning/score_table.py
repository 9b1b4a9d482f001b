"""The table of pruning scores. A new score is one file with its function and one line here."""

from __future__ import annotations

from dataclasses import dataclass

from compress.tables import Entry


@dataclass(frozen=True)
class Score(Entry):
    """A score: a function of the filters of one layer, (n, elements) → (n,), the lowest go first.

    `whole`: a function (module, channels, `scores.Given`) → (score of each class of channels by its root, notes) instead.
    """

    whole: bool = False


SCORES: dict[str, Score] = {
    "l1": Score("compress.pruning.scores:l1_norm", "sum of the magnitudes of the filter that makes a channel"),
    "l2": Score("compress.pruning.scores:l2_norm", "norm of the filter that makes a channel"),
    "random": Score("compress.pruning.scores:at_random", "the yardstick", whole=True),
    "batchnorm": Score("compress.pruning.scores:batchnorm", "scale of the channel's batch-norm", whole=True),
    "taylor": Score("compress.pruning.scores:taylor", "change of the loss without it", "data with labels", whole=True),
    "fpgm": Score("compress.pruning.scores:geometric_median", "distance to the other filters of its layer"),
}
