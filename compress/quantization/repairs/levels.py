"""`fast`, `balanced`, `best`: which repairs run, for how long, and what they may cost."""

from __future__ import annotations

from dataclasses import dataclass

from compress.errors import QuantizationError, nearest


@dataclass(frozen=True)
class Accuracy:
    """What may be done for accuracy.

    `passes`: names of `repairs.passes.REPAIRS`. `seconds`: after which no further pass starts. `latency_share`: of the
    int8 graph's time, at most so much may be given up for layers that stay in float.
    """

    passes: tuple[str, ...] = ()
    seconds: float = 120.0
    latency_share: float = 0.0
    samples: int = 128  # that passes look at, a quarter of them held back to judge by


LEVELS = {
    "fast": Accuracy(),
    "balanced": Accuracy(("equalize", "round", "bias", "float"), 120.0, 0.05),
    "best": Accuracy(("equalize", "round", "bias", "ranges", "float", "blocks"), 1200.0, 0.15, 256),
}


def resolve_accuracy(accuracy: str | Accuracy) -> Accuracy:
    """Options from a name, or the options themselves.

    Raises:
        QuantizationError: no such level.
    """
    if isinstance(accuracy, Accuracy):
        return accuracy
    if accuracy not in LEVELS:
        raise QuantizationError(f"unknown accuracy {accuracy!r}; {nearest(accuracy, LEVELS)}")
    return LEVELS[accuracy]
