"""A figure: its name, its unit, which way is better, and how its values are printed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from compress.steps import Measure

# What a task keeps of a data set: tensors with one row a sample (their number of columns does not grow with the data),
# and, under names that start with "total ", sums over all samples.
Records = Mapping[str, Tensor]
TOTAL = "total "

HIGHER, LOWER = "higher", "lower"


@dataclass(frozen=True)
class Figure:
    """One figure that a task can compute from its records.

    `compute` returns None where the figure has no meaning on these records (top-5 of four classes). `terms`, where the
    figure is a ratio of sums over samples (Σ numerator / Σ denominator), returns the two columns; its interval then
    comes from a formula instead of resampling.
    """

    name: str
    help: str  # one line
    compute: Callable[[Records], float | None]
    unit: str = "%"  # "%": a fraction in [0, 1], printed in percent; "": a plain number
    better: str = HIGHER
    needs: str = "labels"  # labels, or the outputs of the baseline; ", torchmetrics" where that extra computes it
    terms: Callable[[Records], tuple[Tensor, Tensor]] | None = None
    needs_totals: bool = False  # computed from sums over all samples, which cannot be resampled

    def measured(
        self,
        value: float,
        interval: tuple[float, float] | None = None,
        change_interval: tuple[float, float] | None = None,
    ) -> Measure:
        return Measure(self.name, self.unit, self.better, value, interval, change_interval)


def ratio(records: Records, terms: Callable[[Records], tuple[Tensor, Tensor]]) -> float | None:
    """Σ numerator / Σ denominator over the samples; None where nothing was counted."""
    numerator, denominator = terms(records)
    total = float(denominator.double().sum())
    return float(numerator.double().sum()) / total if total else None


def shown(value: float | None, unit: str) -> str | None:
    """Print a value in its unit.

    >>> shown(0.91954, "%"), shown(4.1234567, ""), shown(12.345, "dB")
    ('91.95 %', '4.123', '12.35 dB')
    """
    if value is None:
        return None
    if unit == "%":
        return f"{100 * value:.2f} %"
    return f"{value:.4g}{' ' + unit if unit else ''}"


def difference(value: float, unit: str) -> str:
    """Print a difference of two values: points for fractions, never "-0.00", a real minus sign.

    >>> difference(-0.0025, "%"), difference(0.0, ""), difference(4.8, "")
    ('−0.25', '0', '+4.8')
    """
    if unit == "%":
        text = f"{100 * value:+.2f}"
        return "0.00" if text in ("+0.00", "-0.00") else text.replace("-", "−")
    return "0" if value == 0 else f"{value:+.4g}".replace("-", "−")


def amount(value: float, unit: str) -> str:
    """Print how much was lost or is allowed, in the unit that limits are given in.

    >>> amount(0.005, "%"), amount(0.02, ""), amount(3.0, "dB")
    ('0.5 points', '0.02', '3 dB')
    """
    if unit == "%":
        return f"{100 * value:.4g} points"
    return f"{value:.4g}{' ' + unit if unit else ''}"


def scale_of(unit: str) -> float:
    """What a value is multiplied with to be in the unit that limits are given in: 100 for fractions (points)."""
    return 100.0 if unit == "%" else 1.0


def is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
