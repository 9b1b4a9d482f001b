"""Amounts to remove: fractions below one, held to that before any work."""

from __future__ import annotations

from collections.abc import Sequence

from compress.errors import PruningError


def check_amount(amount: float) -> None:
    """Raise unless `amount` is a fraction below one."""
    if not isinstance(amount, (int, float)) or isinstance(amount, bool) or not 0 <= amount < 1:
        raise PruningError(f"amount {amount!r} is outside [0, 1); give the fraction to remove, such as 0.5")


def check_amounts(amounts: Sequence[float]) -> tuple[float, ...]:
    """The amounts in order, the least first.

    Raises:
        PruningError: none, one that is no fraction, one that is given twice.
    """
    if isinstance(amounts, (str, bytes)) or not hasattr(amounts, "__iter__"):
        raise PruningError(f"amounts {amounts!r} are no list of fractions; give one such as [0.2, 0.4]")
    listed = list(amounts)
    if not listed:
        raise PruningError("there is no amount to prune to; give fractions to remove, such as 0.2,0.4")
    for amount in listed:
        check_amount(amount)
        if listed.count(amount) > 1:
            raise PruningError(f"amount {amount:g} is given twice; give each size once")
    return tuple(sorted(float(amount) for amount in listed))
