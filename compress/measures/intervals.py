"""How sure a figure is: 95 % intervals over samples, of a value and of a difference paired by sample.

Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927): with k of n right,
p = k/n and z = 1.96, the 95 % interval is (p + z²/2n ± z·√(p(1−p)/n + z²/4n²)) / (1 + z²/n).

A ratio r = Σa / Σb over n samples has variance Σ(aᵢ − r·bᵢ)² / (Σb)² (Cochran, "Sampling Techniques", 1977, section 2.11):
pixels of one image are not independent, so the image is the sample. The change of such a ratio between two models has the
same form with the differences of their aᵢ. Anything else is resampled (Efron, "Bootstrap methods", 1979).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Z95 = 1.959963984540054
DRAWS = 200


def wilson(right: int, total: int) -> tuple[float, float]:
    """Return the 95 % interval of a fraction (formula at the top).

    >>> tuple(round(x, 3) for x in wilson(455, 600))
    (0.723, 0.791)
    """
    p, z = right / total, Z95
    centre, scale = p + z * z / (2 * total), 1 + z * z / total
    spread = z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def paired_interval(won: int, lost: int, total: int) -> tuple[float, float]:
    """Return the 95 % interval of the change of accuracy between two models on the same samples.

    Only samples on which they differ carry information (McNemar 1947): with w won and l lost of n,
    the change is (w − l)/n with variance (w + l − (w − l)²/n)/n².
    """
    change = (won - lost) / total
    spread = Z95 * math.sqrt(max(0.0, won + lost - (won - lost) ** 2 / total)) / total
    return change - spread, change + spread


def ratio_interval(numerator: Tensor, denominator: Tensor) -> tuple[float, float] | None:
    """Return the 95 % interval of Σ numerator / Σ denominator; of right answers one a sample, Wilson's."""
    above, below = numerator.double(), denominator.double()
    total = float(below.sum())
    if not total:
        return None
    if not numerator.is_floating_point() and bool((denominator <= 1).all()) and bool((numerator <= denominator).all()):
        return wilson(int(above.sum()), int(total))
    return _linear(above, below)


def paired_ratio_interval(numerator: Tensor, base: Tensor, denominator: Tensor) -> tuple[float, float] | None:
    """Return the 95 % interval of the change of Σ numerator / Σ denominator from the baseline's numerator."""
    total = float(denominator.double().sum())
    return _linear(numerator.double() - base.double(), denominator.double()) if total else None


def _linear(above: Tensor, below: Tensor) -> tuple[float, float]:
    total = float(below.sum())
    value = float(above.sum()) / total
    spread = Z95 * math.sqrt(float((above - value * below).square().sum())) / total
    return value - spread, value + spread


def bootstrap(samples: int, compute: Callable[[Tensor], float | None], draws: int = DRAWS) -> Tensor | None:
    """Compute a figure on `draws` draws of the samples; the draws are the same for every model, so that they pair.

    Returns None where there are too few samples, or some draw has no value.
    """
    if samples < 2:
        return None
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(draws):
        value = compute(torch.randint(samples, (samples,), generator=generator))
        if value is None or not math.isfinite(value):
            return None
        found.append(value)
    return torch.tensor(found, dtype=torch.float64)


def quantiles(values: Tensor) -> tuple[float, float]:
    """The middle 95 % of resampled values."""
    low, high = torch.quantile(values, torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
    return low, high
