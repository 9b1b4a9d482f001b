"""What a search may try: a candidate is a recipe, drawn choice by choice."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from compress.pipeline.prune_options import PruneOptions
from compress.pipeline.quantize_options import QuantizeOptions
from compress.pipeline.recipe import Recipe
from compress.runtimes.runtime import DEFAULT, others_installed

WHOLE = 0.0  # share of the multiply-accumulates removed: none
REMOVED = (WHOLE, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
HEAL = (0, 200, 800)  # gradient steps
FLOAT = "float32"
# Kind of numbers → the options of quantization that it stands for.
KINDS: dict[str, dict[str, Any]] = {
    FLOAT: {},
    "float16": {"method": "dynamic", "weight_type": "float16"},
    "dynamic": {"method": "dynamic"},
    "weights8": {"method": "weight-only", "bits": 8},
    "weights4": {"method": "weight-only", "bits": 4},
    "int8": {"method": "static"},
    "int4": {"method": "static", "weight_bits": 4},
}
STATIC = ("int8", "int4")
# Work of a multiply-accumulate beside one in float32. It steers the search; what is reported is measured.
COST = {FLOAT: 1.0, "float16": 1.0, "dynamic": 0.8, "weights8": 1.0, "weights4": 1.0, "int8": 0.5, "int4": 0.5}
ACCURACY = ("fast", "balanced")
RANGES = ("minmax", "percentile", "mse")


@dataclass(frozen=True)
class Space:
    """The choices that this model, this data and what is installed leave open. Each is asked only where it applies.

    `accuracy` and `ranges` are of static quantization, `heal` (gradient steps) of pruned candidates.
    """

    kind: tuple[str, ...]
    removed: tuple[float, ...] = (WHOLE,)
    heal: tuple[int, ...] = (0,)
    accuracy: tuple[str, ...] = ACCURACY
    ranges: tuple[str, ...] = RANGES
    runtime: tuple[str, ...] = (DEFAULT,)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Space:
        return cls(**{name: tuple(values) for name, values in record.items()})

    def as_dict(self) -> dict[str, Any]:
        return {name: list(values) for name, values in asdict(self).items()}

    def draw(self, trial: Any) -> dict[str, Any]:
        """The choices of one candidate, each asked of the sampler by name; what has one value only is not asked."""
        found: dict[str, Any] = {}
        for name in ("kind", "removed", "heal", "accuracy", "ranges", "runtime"):
            values = getattr(self, name)
            if (len(values) > 1 and self._applies(name, found)) or name == "kind":
                found[name] = trial.suggest_categorical(name, list(values))
        return found

    def _applies(self, name: str, choices: Mapping[str, Any]) -> bool:
        if name in ("accuracy", "ranges"):
            return choices["kind"] in STATIC
        return name != "heal" or choices.get("removed", WHOLE) != WHOLE

    def first(self) -> list[dict[str, Any]]:
        """What is tried before the sampler has a say: each kind as it stands, several amounts in int8, repairs."""
        order = [kind for kind in (FLOAT, "int8", "int4", "float16", "dynamic", "weights8") if kind in self.kind]
        plain = [self._plain(kind) for kind in order]
        best = "int8" if "int8" in self.kind else "dynamic"
        healed = {"heal": self.heal[1]} if len(self.heal) > 1 else {}
        amounts = [amount for amount in self.removed if amount != WHOLE][1::2]
        cut = [{**self._plain(best), "removed": amount, **healed} for amount in amounts]
        repaired = [{**self._plain(kind), "accuracy": self.accuracy[-1]} for kind in STATIC[::-1] if kind in self.kind]
        return [*plain, *cut, *repaired]

    def _plain(self, kind: str) -> dict[str, Any]:
        found: dict[str, Any] = {"kind": kind}
        for name in ("removed", "accuracy", "ranges", "runtime"):
            values = getattr(self, name)
            if len(values) > 1 and self._applies(name, found):
                found[name] = values[0]
        return found

    def all(self) -> list[dict[str, Any]]:
        """Every candidate that there is, in order."""
        return list(self._each({}, ["kind", "removed", "heal", "accuracy", "ranges", "runtime"]))

    def _each(self, chosen: dict[str, Any], names: Sequence[str]) -> Iterable[dict[str, Any]]:
        if not names:
            return [chosen]
        name, values = names[0], getattr(self, names[0])
        if name != "kind" and (len(values) < 2 or not self._applies(name, chosen)):
            return self._each(chosen, names[1:])
        return itertools.chain.from_iterable(self._each({**chosen, name: value}, names[1:]) for value in values)

    def without(self, tried: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Those of `all` that are not among `tried`."""
        return [choices for choices in self.all() if choices not in tried]


def space_of(*, is_module: bool, calibrates: bool, products: bool = True) -> Space:
    """The space for a model and its data.

    Args:
        is_module: a module can be pruned, a graph cannot.
        calibrates: there are samples to set ranges with.
        products: the model has matrix products, whose weights can be stored in blocks.
    """
    kinds = [kind for kind in KINDS if calibrates or kind not in STATIC]
    if not products:
        kinds = [kind for kind in kinds if not kind.startswith("weights")]
    return Space(
        kind=tuple(kinds),
        removed=REMOVED if is_module else (WHOLE,),
        heal=HEAL if is_module and calibrates else (0,),
        runtime=(DEFAULT, *others_installed()),
    )


def recipe_of(choices: Mapping[str, Any], base: Recipe) -> Recipe:
    """The recipe that makes this candidate from the model and the data of `base`."""
    removed = choices.get("removed", WHOLE)
    steps = choices.get("heal") or None
    healing: dict[str, Any] = {"heal_steps": steps} if steps else {"heal": 0.0}
    prune = PruneOptions(target="macs", amount=removed, scope="uniform", **healing) if removed else None
    options = dict(KINDS[choices["kind"]])
    if choices["kind"] in STATIC:
        options |= {"accuracy": choices.get("accuracy", ACCURACY[0]), "ranges": choices.get("ranges", RANGES[0])}
    if options and runtime_of(choices) != DEFAULT and options["method"] == "static":
        options["runtime"] = runtime_of(choices)
    return replace(base, prune=prune, quantize=QuantizeOptions(**options) if options else None, out=None)


def runtime_of(choices: Mapping[str, Any]) -> str:
    """What runs the candidate's file."""
    return str(choices.get("runtime", DEFAULT))


def cost_of(choices: Mapping[str, Any], macs: int) -> float:
    """Work of one sample in multiply-accumulates of float32."""
    return COST[choices["kind"]] * macs


def name_of(choices: Mapping[str, Any]) -> str:
    """A short name, fit for a folder.

    >>> name_of({"kind": "int8", "removed": 0.25, "ranges": "mse", "accuracy": "balanced"})
    'int8-balanced-mse-macs75'
    """
    parts = [str(choices["kind"])]
    for name, usual in (("accuracy", ACCURACY[0]), ("ranges", RANGES[0])):
        if choices.get(name, usual) != usual:
            parts.append(str(choices[name]))
    if choices.get("removed"):
        parts.append(f"macs{round(100 * (1 - choices['removed']))}")
    if choices.get("heal"):
        parts.append(f"healed{choices['heal']}")
    if runtime_of(choices) != DEFAULT:
        parts.append(runtime_of(choices))
    return "-".join(parts)


def is_plain(choices: Mapping[str, Any]) -> bool:
    """Whether this is the model as it came, in the runtime that is there anyway."""
    return choices["kind"] == FLOAT and not choices.get("removed") and runtime_of(choices) == DEFAULT
