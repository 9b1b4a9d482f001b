"""How much is pruned at each step of an iterative run."""

from __future__ import annotations

from compress.errors import PruningError, nearest

SCHEDULES = ("one-shot", "linear", "agp")


def schedule(kind: str, amount: float, steps: int = 1, *, initial: float = 0.0) -> list[float]:
    """Return the total amount pruned after each step, the last one being `amount`.

    "one-shot" takes one step. "linear" takes equal ones. "agp" (automated gradual pruning, Zhu & Gupta 2017,
    equation 1) takes large ones first, while redundancy is plenty: s = s_f + (s_i − s_f)·(1 − t/n)³.

    >>> schedule("linear", 0.6, 3)
    [0.2, 0.4, 0.6]
    >>> schedule("agp", 0.8, 2)
    [0.7, 0.8]

    Raises:
        PruningError: the kind is unknown, or steps is below 1.
    """
    kind = "agp" if kind == "cubic" else kind
    if kind not in SCHEDULES:
        raise PruningError(f"pruning schedule {kind!r} is unknown; {nearest(kind, SCHEDULES)}")
    if steps < 1:
        raise PruningError(f"a schedule of {steps} steps prunes nothing; give 1 or more")
    if kind == "one-shot":
        return [amount]
    power = 1 if kind == "linear" else 3
    totals = [amount + (initial - amount) * (1 - step / steps) ** power for step in range(1, steps)]
    return [*(round(total, 12) for total in totals), amount]


def next_fraction(total: float, left: float) -> float:
    """Return the fraction to take of what is left so that `total` of the whole is gone; never negative.

    >>> round(next_fraction(0.75, 0.5), 6)
    0.5
    """
    return min(max(0.0, 1.0 - (1.0 - total) / left), 1.0 - 1e-9) if left > 0 else 0.0
