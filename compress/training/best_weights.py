"""Which weights a run returns: the best by the monitored figure, the network as it came among them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import nn

from compress.errors import TrainingError
from compress.measures.figure import HIGHER
from compress.measures.opening import Measures
from compress.measures.tasks import MEASURES
from compress.training.criterion import Criterion
from compress.training.diverging import try_instead
from compress.training.epoch import evaluate_epoch
from compress.training.loaders import Batches
from compress.training.options import AUTO, TrainOptions
from compress.training.run_state import Run

EVEN_ODDS = 0.95  # share of the loss of even odds below which a network knows something
CLASSES = ("cross_entropy", "bce")  # losses beside which the share of right answers is what people look at


def decide_watched(
    batches: Batches, options: TrainOptions, criterion: Criterion, measures: Measures | None
) -> tuple[str, bool]:
    """The figure that decides which epoch is best, such as `eval/top1`, and whether more of it is better."""
    part = "eval" if batches.evaluation is not None else "train"
    if measures is not None and batches.evaluation is None:
        raise TrainingError("a metric needs data to be judged on; give a test part, or the second of a pair of loaders")
    if measures is not None and options.monitor == AUTO:
        name, rising = decided_by(measures)
        return f"eval/{name}", rising
    figure = options.monitor if options.monitor != AUTO else "top1" if criterion.name in CLASSES else "loss"
    return f"{part}/{figure}", figure == "top1"


def decided_by(measures: Measures) -> tuple[str, bool]:
    """Name and direction of the first figure that the user asked for."""
    if measures.metrics:
        first = measures.metrics[0]
        return first.name, first.direction == HIGHER
    figure = next(figure for figure in MEASURES.values() if figure.name == measures.leading)
    return figure.name, figure.better == HIGHER


def judge_start(run: Run) -> None:
    """Measure the network before the first epoch; random states are as before.

    Raises:
        TrainingError: the loss or the metric does not take this model's outputs with this data's targets.
    """
    if run.batches.evaluation is None:
        return
    states = run.random()
    try:
        record = evaluate_epoch(run, run.module, "judging the start")
    finally:
        run.restore_random(states)
    run.start = {"epoch": 0, "step": 0, **record}
    if run.options.monitor == AUTO and run.watched == "eval/top1" and run.watched not in record:
        run.watch("eval/loss", rising=False)
    if run.watched not in record:
        found = ", ".join(key.removeprefix("eval/") for key in record)
        raise TrainingError(
            f"monitor {run.watched.removeprefix('eval/')!r} asks for {run.watched}, which this model and data do not give; "
            f"there is {found}"
        )


def trained_already(run: Run) -> bool:
    """Whether the network knew something before the first epoch, so that its weights may be what is kept.

    One that fine-tuning was asked for does. Else it does where it is right twice as often as by guessing (and a tenth more),
    or costs less than even odds for all classes; where outputs are no class scores this cannot be known, and it may.
    """
    if run.start is None:
        return False
    if run.options.finetune or not run.start_classes or run.criterion.name not in CLASSES:
        return True
    classes = run.start_classes
    right = run.start.get("eval/top1", 0.0) > 2 / classes + 0.1
    return right or run.start["eval/loss"] < EVEN_ODDS * math.log(classes)


def comparable(module: nn.Module) -> bool:
    """Whether what was judged is what will ship: not while the rounding of an int8 graph is switched off."""
    return all(getattr(part, "quantizing", True) for part in module.modules())


@dataclass(frozen=True)
class Chosen:
    """Which epoch is best (0: the network as it came) with its score, which one's weights are returned, what to say."""

    best: int | None
    score: float | None
    kept: int
    notes: tuple[str, ...] = ()


def chosen_weights(run: Run, module: nn.Module) -> Chosen:
    """Put the weights to be returned into the run's module. `module` is the network as it came."""
    words = [run.stopped] if run.stopped else []
    best = None if run.stopping.best_epoch is None else run.stopping.best_epoch + 1
    score, last = run.stopping.best, len(run.history)
    first = run.start.get(run.watched, math.nan) if run.start is not None else math.nan
    if math.isfinite(first) and (run.stopping.beaten_by(first) or _tied(run, first)) and trained_already(run):
        best, score = 0, first
        after = "" if run.stopping.best is None else f", at best {run.stopping.best:.4g} after it"
        words.append(f"epoch 0: training did not help ({run.watched} {first:.4g} before{after}); {try_instead(run)}")
    averaged = run.average.values if run.average else None
    if run.options.keep == "last" or best is None:
        _load(run.module, averaged)
        if best not in (None, last):
            figure = run.history[-1].get(run.watched, math.nan) if run.history else math.nan
            words.append(f"saved: the last epoch ({run.watched} {figure:.4g}); epoch {best} was best ({score:.4g})")
        return Chosen(best, score, last, tuple(words))
    if _load(run.module, module.state_dict() if best == 0 else run.best_model or averaged):
        words += ["the network is as it came"] if best == 0 else []
        return Chosen(best, score, best, tuple(words))
    _load(run.module, averaged)
    words.append("saved: the last epoch, because the network's parameters changed their names on the way")
    return Chosen(best, score, last, tuple(words))


def _tied(run: Run, first: float) -> bool:
    """Whether the best epoch is just as good by what is monitored, and costs more by the loss."""
    if run.stopping.best != first or run.start is None or run.stopping.best_epoch is None:
        return False
    after = run.history[run.stopping.best_epoch].get("eval/loss", math.nan)
    return not after <= run.start["eval/loss"]


def _load(module: nn.Module, state: dict[str, Any] | None) -> bool:
    """Put weights in place, where they are those of this network: a callback may have masked or parametrized it."""
    if state is None:
        return True
    if state.keys() != module.state_dict().keys():
        return False
    module.load_state_dict(state)
    return True
