"""An accuracy budget: leave the layers that cost most in float until the drop is inside it.

    1. everything in int8; inside the budget: done
    2. rank the layers by the error each makes alone (`sensitivity.py`)
    3. leave the worst 1, 2, 4, 8 … in float until the score is inside
    4. bisect between the last count that was outside and the first inside

Calibration happens once. Every trial is scored on the very graph that would ship.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
from torch import nn

from compress.errors import QuantizationError
from compress.given import batches_of
from compress.measures.figure import HIGHER, amount, shown
from compress.options import spelled_out
from compress.quantization.calibrated import Calibrated
from compress.quantization.options import StaticOptions
from compress.quantization.sensitivity import LayerError, rank_layers
from compress.quantization.static import calibrate_static
from compress.steps import Change, Measure, Step


@dataclass(frozen=True)
class Trial:
    """One graph that was scored: the layers it leaves in float, by node name."""

    float_layers: tuple[str, ...]
    score: float


@dataclass(frozen=True)
class BudgetResult:
    """The best graph found, whether it is inside the budget, and how it was found."""

    step: Step
    baseline: float
    score: float
    max_drop: float
    trials: tuple[Trial, ...]
    ranking: tuple[LayerError, ...]

    @property
    def drop(self) -> float:
        return self.baseline - self.score

    @property
    def met(self) -> bool:
        return self.drop <= self.max_drop + 1e-9


def quantize_within(
    model: nn.Module | ir.Model | str | Path,
    calibration: Iterable[Any],
    score: Callable[[ir.Model], float],
    *,
    max_drop: float,
    baseline: float | None = None,
    max_float_layers: int | None = None,
    ranking_samples: int = 64,
    measure: Measure | None = None,
    scored_on: str = "the samples scored",
    options: StaticOptions | None = None,
    example_inputs: Any = None,
    threads: int | None = None,
    **fields: Any,
) -> BudgetResult:
    """Quantize to int8 with as few layers in float as keep `score` within `max_drop` of the float graph's.

    Args:
        calibration: as for `quantize_static`; the ranking uses its first `ranking_samples` samples.
        score: measures one graph, higher is better (top-1 of held-out samples, in [0, 1]).
        max_drop: in the unit of `score`; 0.01 is one point of top-1.
        baseline: the float graph's score; measured where it is None.
        max_float_layers: never leave more than these in float; None: as many as it takes.
        measure: the float graph's figure that is scored, for the note: its name, its unit, which way is better (where
            less is, the score is its negative). Default: a fraction, shown in %.
        scored_on: what `score` looks at, for the note.
        options, fields: as for `quantize_static`, with its `fold_weights` left as it is.

    Returns:
        BudgetResult: where no count of layers is inside, its step is that of the best score found, and `met` is False.

    Raises:
        QuantizationError: a negative `max_drop`; otherwise as `quantize_static`.
    """
    if max_drop < 0:
        raise QuantizationError(f"max_drop must be 0 or more, not {max_drop}; it is a loss, in the unit of the score")
    calibration = batches_of(calibration)
    options = spelled_out(StaticOptions, options, fields, "quantize_within")
    calibrated, rewritten = calibrate_static(
        model, calibration, options, example_inputs=example_inputs, threads=threads
    )
    search = _Search(calibrated, score)
    reference = score(calibrated.graph) if baseline is None else baseline
    needed = reference - max_drop - 1e-9
    ranking: tuple[LayerError, ...] = ()
    if search.score_of(()) < needed:
        ranking = rank_layers(calibrated, calibration, samples=ranking_samples, threads=threads)
        worst = [item.node for item in ranking][:max_float_layers]
        search.fewest(worst, needed)
    best = search.best(needed)
    step = calibrated.quantize(exclude=best.float_layers)
    changes = (*rewritten, *_explained(step.changes, best, ranking), *(item.as_change() for item in ranking))
    result = BudgetResult(
        replace(step, changes=changes), reference, best.score, max_drop, tuple(search.trials.values()), ranking
    )
    note = _note(result, best, measure, scored_on)
    return replace(result, step=replace(result.step, notes=(*step.notes, note)))


class _Search:
    def __init__(self, calibrated: Calibrated, score: Callable[[ir.Model], float]) -> None:
        self.calibrated, self.score = calibrated, score
        self.trials: dict[tuple[str, ...], Trial] = {}

    def score_of(self, layers: tuple[str, ...]) -> float:
        if layers not in self.trials:
            graph = self.calibrated.quantize(exclude=layers).model
            self.trials[layers] = Trial(layers, self.score(graph))
        return self.trials[layers].score

    def fewest(self, worst: list[str], needed: float) -> None:
        """Try growing, then bisected, counts of the worst layers."""
        outside, count = 0, 1
        while worst and self.score_of(tuple(worst[:count])) < needed:
            if count >= len(worst):
                return
            outside, count = count, min(2 * count, len(worst))
        inside = count
        while inside - outside > 1:
            middle = (inside + outside) // 2
            if self.score_of(tuple(worst[:middle])) < needed:
                outside = middle
            else:
                inside = middle

    def best(self, needed: float) -> Trial:
        """The fewest float layers that are inside; else the highest score."""
        inside = [trial for trial in self.trials.values() if trial.score >= needed]
        if inside:
            return min(inside, key=lambda trial: (len(trial.float_layers), -trial.score))
        return max(self.trials.values(), key=lambda trial: (trial.score, -len(trial.float_layers)))


def _explained(changes: tuple[Change, ...], best: Trial, ranking: tuple[LayerError, ...]) -> list[Change]:
    alone = {item.node: f"{item.sqnr_db:.1f} dB" for item in ranking if item.node in best.float_layers}
    return [
        replace(change, reason=f"left in float for accuracy: alone in int8 it puts the output at {alone[node]} SQNR")
        if (node := str(change.values.get("node"))) in alone
        else change
        for change in changes
    ]


def _note(result: BudgetResult, best: Trial, measure: Measure | None, scored_on: str) -> str:
    verdict = "inside" if result.met else "outside"
    name, unit, sign = "", "%", 1
    if measure is not None:
        name, unit, sign = f"{measure.name} ", measure.unit, 1 if measure.better == HIGHER else -1
    figures = f"{name}{shown(sign * result.score, unit)} against {shown(sign * result.baseline, unit)} in float"
    allowed = amount(result.max_drop, unit)
    names = [item.layer for item in result.ranking if item.node in best.float_layers]
    listed = f" ({', '.join(names[:5])}{', …' if len(names) > 5 else ''})" if names else ""
    return (
        f"{verdict} the accuracy budget on {scored_on}: {figures}, {allowed} allowed; "
        f"layers left in float for it: {len(names)}{listed}; variants tried: {len(result.trials)}"
    )
