"""An accuracy budget: wider weights, then float layers, until the drop is inside it, within a size and a speed.

    1. everything as asked for; inside the budget: done
    2. where weights have four bits: give eight back to the layers that gain most for each byte (`repairs/widths.py`)
    3. rank the layers by the error each makes alone (`layer_errors.py`), leave the worst 1, 2, 4, 8 … in float
    4. in both, bisect between the last count that was outside and the first inside

No count is tried whose file would be larger than it may be; the one that is chosen is timed. Calibration happens once. Every
trial is scored on the very graph that would ship.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

import onnx_ir as ir
from torch import nn

from compress.counting import counted
from compress.errors import QuantizationError
from compress.given import batches_of
from compress.graph.constants import constant_array
from compress.measures.figure import HIGHER, amount, shown
from compress.onnx_files import file_bytes
from compress.options import spelled_out
from compress.quantization.calibrated import Calibrated
from compress.quantization.layer_errors import LayerError, rank_layers
from compress.quantization.options import StaticFields, StaticOptions
from compress.quantization.repairs.judge import take_samples
from compress.quantization.repairs.widths import rank_widths, widened
from compress.quantization.static import calibrate_static
from compress.quantization.storage import NARROW
from compress.steps import Change, Measure, Step


@dataclass(frozen=True)
class Bounds:
    """What the file must hold beside the score: `speedup` measures a graph's, where `min_speedup` is set."""

    max_bytes: int | None = None
    min_speedup: float | None = None
    speedup: Callable[[ir.Model], float] | None = None


@dataclass(frozen=True)
class Budget:
    """What may be lost, of which score, and what it is looked for with.

    Raises:
        QuantizationError: a negative `max_drop`.
    """

    score: Callable[[ir.Model], float]  # measures one graph, higher is better (top-1 of held-out samples, in [0, 1])
    max_drop: float  # in the unit of `score`; 0.01 is one point of top-1
    baseline: float | None = None  # the float graph's score; measured where it is None
    max_float_layers: int | None = None  # never leave more than these in float; None: as many as it takes
    ranking_samples: int = 64  # of the calibration data, that layers are ranked on
    # The figure that is scored, for the note: name, unit, which way is better (where less is, the score is its negative).
    measure: Measure | None = None  # None: a fraction, shown in %
    scored_on: str = "the samples scored"  # what `score` looks at, for the note
    bounds: Bounds = Bounds()  # size and speed of the file, which are solved for together with the drop

    def __post_init__(self) -> None:
        if self.max_drop < 0:
            raise QuantizationError(
                f"max_drop must be 0 or more, not {self.max_drop}; it is a loss, in the unit of the score"
            )


@dataclass(frozen=True)
class Trial:
    """One graph that was scored: the layers it leaves in float, and those with eight bits instead of four, by node name."""

    float_layers: tuple[str, ...]
    score: float
    wide_layers: tuple[str, ...] = ()
    bytes: int = 0  # of the file

    def as_change(self, chosen: bool, text: str) -> Change:
        """The step of the way that this trial was."""
        values = {"float_layers": list(self.float_layers), "wide_layers": list(self.wide_layers), "bytes": self.bytes}
        parts = f"{counted(len(self.float_layers), 'layer')} in float" + (
            f", {len(self.wide_layers)} back in 8 bits" if self.wide_layers else ""
        )
        reason = f"{parts}: {text}, {self.bytes:,} bytes"
        return Change(
            "graph", "tried for the budget", reason, skipped=not chosen, values={**values, "score": self.score}
        )


@dataclass(frozen=True)
class BudgetResult:
    """The best graph found, whether it is inside the budget, and how it was found."""

    step: Step
    baseline: float
    score: float
    max_drop: float
    trials: tuple[Trial, ...]
    ranking: tuple[LayerError, ...]
    fits: bool = True  # inside the size and the speed

    @property
    def drop(self) -> float:
        return self.baseline - self.score

    @property
    def met(self) -> bool:
        return self.fits and self.drop <= self.max_drop + 1e-9


def quantize_within(
    model: nn.Module | ir.Model | str | Path,
    calibration: Iterable[Any],
    budget: Budget,
    options: StaticOptions | None = None,
    *,
    example_inputs: Any = None,
    threads: int | None = None,
    **fields: Unpack[StaticFields],
) -> BudgetResult:
    """Quantize to int8 with as few layers in float as keep the score within the budget.

    Args:
        calibration: as for `quantize_static`; the ranking uses its first samples.
        budget: the score, what may be lost of it, and what else the file must hold.
        options, fields: as for `quantize_static`, with its `fold_weights` left as it is.

    Returns:
        BudgetResult: where no count of layers is inside, its step is that of the best score found, and `met` is False.

    Raises:
        QuantizationError: as `quantize_static`.
    """
    calibration = batches_of(calibration)
    options = spelled_out(StaticOptions, options, fields, "quantize_within")
    calibrated, rewritten = calibrate_static(
        model, calibration, options, example_inputs=example_inputs, threads=threads
    )
    bounds = budget.bounds
    search = _Search(calibrated, budget.score, bounds.max_bytes)
    reference = budget.score(calibrated.graph) if budget.baseline is None else budget.baseline
    needed = reference - budget.max_drop - 1e-9
    ranking: tuple[LayerError, ...] = ()
    first = search.tried((), ())
    if first.score < needed and search.fits(first):  # whatever is tried then makes the file larger
        wide = search.fewest([((), wide) for wide in _prefixes(_narrow(calibrated, calibration, threads))], needed)
        if not any(trial.score >= needed for trial in search.trials.values()):
            ranking = rank_layers(calibrated, calibration, samples=budget.ranking_samples, threads=threads)
            worst = [item.node for item in ranking][: budget.max_float_layers]
            search.fewest([(floats, wide) for floats in _prefixes(worst)], needed)
    best = search.best(needed)
    step = search.step_of(best)
    fast = None if bounds.min_speedup is None or bounds.speedup is None else bounds.speedup(step.model)
    fits = search.fits(best) and (fast is None or fast >= (bounds.min_speedup or 0))
    trials = tuple(search.trials.values())
    decisions = [trial.as_change(trial is best, _shown(trial.score, budget.measure)) for trial in trials]
    alone = [item.as_change() for item in ranking]
    changes = (*rewritten, *_explained(step.changes, best, ranking), *(decisions if len(decisions) > 1 else ()), *alone)
    result = BudgetResult(replace(step, changes=changes), reference, best.score, budget.max_drop, trials, ranking, fits)
    note = _note(result, best, budget)
    if not fits:
        speed = "" if fast is None else f", {fast:.2f}× as fast as float"
        note += f"; but not within the size and the speed asked for ({best.bytes:,} bytes{speed})"
    return replace(result, step=replace(result.step, notes=(*step.notes, note)))


def _narrow(calibrated: Calibrated, calibration: Iterable[Any], threads: int | None) -> list[str]:
    """The layers whose weights have four bits, those first that gain most for each byte of eight."""
    if calibrated.weights.bits > NARROW:
        return []
    order = calibrated.widths or rank_widths(calibrated, take_samples(calibration), threads=threads)
    return [item.node for item in order if item.node not in calibrated.weights.layer_bits]


def _prefixes(names: Sequence[str]) -> list[tuple[str, ...]]:
    return [tuple(names[:count]) for count in range(len(names) + 1)]


def _shown(score: float, measure: Measure | None) -> str:
    """A score as the figure that it is of."""
    if measure is None:
        return shown(score, "%") or ""
    return shown(score if measure.better == HIGHER else -score, measure.unit) or ""


Config = tuple[tuple[str, ...], tuple[str, ...]]  # layers in float, layers back in eight bits


class _Search:
    def __init__(self, calibrated: Calibrated, score: Callable[[ir.Model], float], max_bytes: int | None) -> None:
        self.calibrated, self.score, self.max_bytes = calibrated, score, max_bytes
        self.trials: dict[Config, Trial] = {}

    def step_of(self, trial: Trial) -> Step:
        wide = widened(self.calibrated, trial.wide_layers) if trial.wide_layers else self.calibrated
        return wide.quantize(exclude=trial.float_layers)

    def tried(self, floats: tuple[str, ...], wide: tuple[str, ...]) -> Trial:
        if (floats, wide) not in self.trials:
            graph = self.step_of(Trial(floats, 0.0, wide)).model
            self.trials[floats, wide] = Trial(floats, self.score(graph), wide, file_bytes(graph))
        return self.trials[floats, wide]

    def fits(self, trial: Trial) -> bool:
        return self.max_bytes is None or trial.bytes <= self.max_bytes

    def inside(self, floats: tuple[str, ...], wide: tuple[str, ...], needed: float) -> bool:
        trial = self.tried(floats, wide)
        return trial.score >= needed and self.fits(trial)

    def _fitting(self, configs: list[Config]) -> list[Config]:
        """The first of these, none of whose files would be larger than it may be."""
        if self.max_bytes is None:
            return configs
        sizes = {str(node.name): weight_size(node) for node in self.calibrated.graph.graph}
        nodes = {str(node.name): node for node in self.calibrated.graph.graph}
        start = self.tried((), ()).bytes

        def added(config: Config) -> float:
            floats, wide = config
            narrow = {name: self.calibrated.weights.bits_of(nodes[name]) <= NARROW for name in (*floats, *wide)}
            kept = sum(sizes[name] * (3.5 if narrow[name] else 3) for name in floats)
            return kept + sum(sizes[name] / 2 for name in wide if narrow[name] and name not in floats)

        return [config for config in configs if start + added(config) <= self.max_bytes] or configs[:1]

    def fewest(self, configs: list[Config], needed: float) -> tuple[str, ...]:
        """Try growing, then bisected, places in `configs`, which get better and larger; return the widest tried."""
        configs = self._fitting(configs)
        outside, at = 0, 1
        while len(configs) > 1 and not self.inside(*configs[at], needed):
            if at >= len(configs) - 1:
                return configs[at][1]
            outside, at = at, min(2 * at, len(configs) - 1)
        inside = at
        while inside - outside > 1:
            middle = (inside + outside) // 2
            if self.inside(*configs[middle], needed):
                inside = middle
            else:
                outside = middle
        return configs[min(inside, len(configs) - 1)][1]

    def best(self, needed: float) -> Trial:
        """The fewest float and wide layers that are inside; else the highest score of those that fit."""
        inside = [trial for trial in self.trials.values() if trial.score >= needed and self.fits(trial)]
        if inside:
            return min(inside, key=lambda trial: (len(trial.float_layers), len(trial.wide_layers), -trial.score))
        fitting = [trial for trial in self.trials.values() if self.fits(trial)]
        if not fitting:
            return min(self.trials.values(), key=lambda trial: trial.bytes)
        return max(fitting, key=lambda trial: (trial.score, -len(trial.float_layers)))


def weight_size(node: ir.Node) -> int:
    """How many weights a node has."""
    weight = constant_array(node.inputs[1]) if len(node.inputs) > 1 else None
    return 0 if weight is None else weight.size


def _explained(changes: tuple[Change, ...], best: Trial, ranking: tuple[LayerError, ...]) -> list[Change]:
    alone = {item.node: f"{item.sqnr_db:.1f} dB" for item in ranking if item.node in best.float_layers}
    return [
        replace(change, reason=f"left in float for accuracy: alone in int8 it puts the output at {alone[node]} SQNR")
        if (node := str(change.values.get("node"))) in alone
        else change
        for change in changes
    ]


def _note(result: BudgetResult, best: Trial, budget: Budget) -> str:
    verdict = "inside" if result.met else "outside"
    name, unit, sign, measure = "", "%", 1, budget.measure
    if measure is not None:
        name, unit, sign = f"{measure.name} ", measure.unit, 1 if measure.better == HIGHER else -1
    figures = f"{name}{shown(sign * result.score, unit)} against {shown(sign * result.baseline, unit)} in float"
    allowed = amount(result.max_drop, unit)
    names = [item.layer for item in result.ranking if item.node in best.float_layers]
    listed = f" ({', '.join(names[:5])}{', …' if len(names) > 5 else ''})" if names else ""
    return (
        f"{verdict} the accuracy budget on {budget.scored_on}: {figures}, {allowed} allowed; "
        f"layers left in float for it: {len(names)}{listed}; variants tried: {len(result.trials)}"
    )
