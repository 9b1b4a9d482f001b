"""`fast`, `balanced`, `best`: which repairs run, and for how long."""

from __future__ import annotations

from dataclasses import dataclass

from compress.errors import QuantizationError, nearest


@dataclass(frozen=True)
class Accuracy:
    """What may be done for accuracy.

    `passes`: names of `repairs.passes.REPAIRS`; None: all of them. `seconds`: after which no further pass starts.
    """

    passes: tuple[str, ...] | None = ()
    seconds: float = 120.0
    samples: int = 128  # that passes look at, a quarter of them held back to judge by
    wide_share: float = 0.2  # of the weights, that may keep 8 bits where 4 are asked for
    mixed_db: float = 20.0  # at the outputs: past it no further layer gets its 8 bits back
    float_share: float = 0.05  # of the int8 network's time (and of its weights' bytes), that float layers may add
    float_db: float = 30.0  # at the outputs: past it no further layer is left in float
    max_bytes: int | None = None  # of the file: 8 bits come back as long as it holds, whatever `wide_share` says
    keeps: bool = False  # Ctrl-C ends the repairs, and what they have come to is delivered; else it ends the work
    round_bytes: bool = False  # whether weights of eight bits are rounded with error feedback too

    def runs(self, name: str) -> bool:
        """Whether the repair of that name is to run."""
        return self.passes is None or name in self.passes


LEVELS = {
    "fast": Accuracy(),
    "balanced": Accuracy(None, 120.0),
    "best": Accuracy(None, 1200.0, samples=256, float_share=0.3, float_db=33.0, keeps=True, round_bytes=True),
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
