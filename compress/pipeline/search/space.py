"""What a search may try: a candidate is a recipe, drawn choice by choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from compress.pipeline.prune_options import PruneOptions
from compress.pipeline.quantize_options import QuantizeOptions
from compress.pipeline.recipe import Recipe

WHOLE = 0.0  # share of the MACs removed: none
REMOVED = (WHOLE, 0.15, 0.25, 0.4, 0.55)
FLOAT = "float32"
# Kind of quantization → the options that it stands for. Those that need data are left out where there is none.
KINDS: dict[str, dict[str, Any]] = {
    FLOAT: {},
    "float16": {"method": "dynamic", "weight_type": "float16"},
    "dynamic": {"method": "dynamic"},
    "static": {"method": "static", "tune_latency": False},
    "static4": {"method": "static", "tune_latency": False, "weight_bits": 4},
}
CALIBRATED = ("static", "static4")
RANGES = ("minmax", "percentile", "mse")


@dataclass(frozen=True)
class Space:
    """The choices that this model, this data and what is installed leave open."""

    removed: tuple[float, ...]
    kinds: tuple[str, ...]
    ranges: tuple[str, ...]

    def draw(self, trial: Any) -> dict[str, Any]:
        """The choices of one candidate, each asked of the sampler by name."""
        found: dict[str, Any] = {"kind": trial.suggest_categorical("kind", list(self.kinds))}
        if len(self.removed) > 1:
            found["removed"] = trial.suggest_categorical("removed", list(self.removed))
        if found["kind"] in CALIBRATED:
            found["ranges"] = trial.suggest_categorical("ranges", list(self.ranges))
        return found

    def first(self) -> list[dict[str, Any]]:
        """What is tried before the sampler has a say: each kind as it stands, then each amount in int8."""
        whole = {"removed": WHOLE} if len(self.removed) > 1 else {}
        order = [kind for kind in ("static", *KINDS) if kind in self.kinds and kind != FLOAT]
        plain = [self._with_ranges({"kind": kind, **whole}) for kind in dict.fromkeys(order)]
        best = order[0] if order else FLOAT
        return plain + [
            self._with_ranges({"kind": best, "removed": amount}) for amount in self.removed if amount != WHOLE
        ]

    def size(self) -> int:
        """How many candidates there are."""
        each = sum(len(self.ranges) if kind in CALIBRATED else 1 for kind in self.kinds)
        return each * len(self.removed)

    def _with_ranges(self, choices: dict[str, Any]) -> dict[str, Any]:
        return {**choices, "ranges": self.ranges[0]} if choices["kind"] in CALIBRATED else choices


def space_of(*, is_module: bool, calibrates: bool) -> Space:
    """The space for a model (a module can be pruned, a graph cannot) and its data."""
    kinds = tuple(kind for kind in KINDS if calibrates or kind not in CALIBRATED)
    return Space(REMOVED if is_module else (WHOLE,), kinds, RANGES)


def recipe_of(choices: Mapping[str, Any], base: Recipe) -> Recipe:
    """The recipe that makes this candidate from the model and the data of `base`."""
    removed, kind = choices.get("removed", WHOLE), choices["kind"]
    prune = PruneOptions(target="macs", amount=removed) if removed else None
    options = dict(KINDS[kind])
    if "ranges" in choices:
        options["ranges"] = choices["ranges"]
    quantize = QuantizeOptions(**options) if options else None
    return replace(base, prune=prune, quantize=quantize)


def name_of(choices: Mapping[str, Any], default_ranges: str = RANGES[0]) -> str:
    """A short name, fit for a folder.

    >>> name_of({"kind": "static4", "removed": 0.25, "ranges": "mse"})
    'static4-mse-macs75'
    """
    parts = [choices["kind"]]
    if choices.get("ranges", default_ranges) != default_ranges:
        parts.append(choices["ranges"])
    if choices.get("removed"):
        parts.append(f"macs{round(100 * (1 - choices['removed']))}")
    return "-".join(parts)


def is_plain(choices: Mapping[str, Any]) -> bool:
    """Whether this is the model as it came, which is the baseline and no candidate."""
    return choices["kind"] == FLOAT and not choices.get("removed")


def unseen(choices: Mapping[str, Any], tried: Sequence[Mapping[str, Any]]) -> bool:
    return all(dict(choices) != dict(other) for other in tried)
