"""What models score on a data set, in one pass: figures of the task, own metrics, distance from the baseline's outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from compress.batches import read_batch
from compress.errors import DataError
from compress.evaluation.class_counts import ClassCounts
from compress.evaluation.differences import OutputDifferences
from compress.evaluation.runners import Runner, Target, open_runner
from compress.given import batches_of, model_of, short_name
from compress.measures.figure import ratio
from compress.measures.intervals import ratio_interval
from compress.measures.opening import Measures, open_measures
from compress.measures.tally import Tally
from compress.measures.task import Labelled, Reading
from compress.progress import track
from compress.steps import Measure, Measurement
from compress.taking import takes

# Figures that say how many answers are right, by whatever name their task gives them.
RIGHT = ("top-1", "accuracy", "pixel accuracy", "token accuracy")


@takes()
def evaluate(
    target: Target,
    loader: Iterable[Any],
    *,
    baseline: Target | None = None,
    metric: str | Callable[..., Any] | Any = None,
    task: str = "auto",
    ignore_label: int | None = None,
    threads: int | None = None,
    name: str | None = None,
) -> Measurement:
    """Measure the accuracy of a module, a graph, a .pt2 or a .onnx file on every batch of `loader`.

    `measures` of the result holds the figures of the task, the user's own metrics first; the first decides.
    `differences` says how far each output is from the baseline's, labels or not. `top1`, `top5` and `agreement` are
    fractions, None where outputs are no class scores. `extra` holds the task, 95 % intervals and counts for each class.

    Args:
        baseline: the model to set beside; run on the same batches.
        metric: see `measures.own.open_metrics`.
        task: auto, or a name of `measures.tasks.TASKS`.
        ignore_label: positions with this label count in no figure; −100 never does.

    Raises:
        DataError: no batch, targets that the task has not, or values that are not finite.
        InputError: the model rejects the inputs, or the metric failed.
    """
    target, batches = model_of(target), batches_of(loader, "test")
    label = name or short_name(target)
    targets: dict[str, Target] = {label: target}
    asked = open_measures(metric, task=task, ignore_label=ignore_label)
    if baseline is None:
        return evaluate_all(targets, batches, measures=asked, threads=threads)[label]
    key = f"{label} (baseline)"
    return evaluate_all({key: model_of(baseline), **targets}, batches, baseline=key, measures=asked, threads=threads)[
        label
    ]


def evaluate_all(
    targets: Mapping[str, Target],
    loader: Iterable[Any],
    *,
    baseline: str | None = None,
    measures: Measures | None = None,
    intervals: bool = True,
    threads: int | None = None,
) -> dict[str, Measurement]:
    """Measure several models in one pass over the data, beside `baseline` (a key of `targets`).

    `intervals=False` spares a search the resampling.
    """
    measures = measures or Measures()
    runners = {name: open_runner(target, threads=threads) for name, target in targets.items()}
    order = sorted(runners, key=lambda name: name != baseline)  # the baseline first: the others are set beside it
    rows: dict[str, Row] = {}
    for batch in track(loader, "evaluate"):
        read = read_batch(batch)
        reference: Answer | None = None
        for name in order:
            outputs = runners[name](read)
            if not rows:  # the baseline's (else the first model's) outputs say how all are read
                reading = measures.read(outputs, read.target)
                rows = {each: Row(measures.start(reading)) for each in order}
            answer = rows[name].add(outputs, read.target, reference)
            reference = answer if name == baseline else reference
    if not rows:
        raise DataError("the data yields no batch; check --data and its test part")
    base = rows[baseline] if baseline is not None else None
    if base is not None:
        base.tally.is_baseline = True
    return {name: rows[name].measurement(name, runners[name], base, intervals=intervals) for name in targets}


@dataclass(frozen=True)
class Answer:
    """A batch as one model answered it."""

    outputs: tuple[Tensor, ...]
    classes: Tensor | None
    labelled: Labelled | None


@dataclass
class Row:
    """Everything that is counted of one model."""

    tally: Tally
    classes: ClassCounts = field(default_factory=ClassCounts)
    differences: OutputDifferences = field(default_factory=OutputDifferences)

    def add(self, outputs: tuple[Tensor, ...], target: Any, reference: Answer | None) -> Answer:
        """Count one batch; return what was answered, for the models that are set beside this one."""
        seen = self.tally.add(outputs, target, None if reference is None else reference.outputs)
        answer = Answer(outputs, _classes(seen.scores, self.tally.reading), seen.labelled)
        if seen.labelled is not None:
            self.classes.add(seen.labelled, None if reference is None else reference.labelled)
        if reference is not None:
            self.differences.add(outputs, reference.outputs)
            if answer.classes is not None and reference.classes is not None:
                self.classes.compare(answer.classes, reference.classes)
        return answer

    def measurement(self, name: str, runner: Runner, base: Row | None, *, intervals: bool = True) -> Measurement:
        """Turn the counts into figures."""
        tally = self.tally
        found = tally.measures(base.tally if base is not None and base is not self else None, intervals=intervals)
        by_name = {item.name: item for item in found[len(tally.metrics) :]}
        names = getattr(runner, "output_names", ())
        return Measurement(
            name=name,
            path=None if runner.path is None else str(runner.path),
            top1=next((by_name[key].value for key in RIGHT if key in by_name), None),
            top5=by_name["top-5"].value if "top-5" in by_name else None,
            loss=_loss(tally),
            metric=found[0].value if tally.metrics else None,
            agreement=self.classes.agreement,
            samples=tally.positions if tally.positions and not tally.reading.task.position else tally.samples,
            measures=found,
            differences=self.differences.found(names),
            extra=self._extra(found),
        )

    def _extra(self, found: tuple[Measure, ...]) -> dict[str, Any]:
        tally, task = self.tally, self.tally.reading.task
        extra: dict[str, Any] = {"task": task.name, **self.classes.as_extra()}
        if tally.reading.reason:
            extra["task_reason"] = tally.reading.reason
        if tally.dropped:
            extra["no_figures"] = tally.dropped
        if tally.left_out:
            extra["left_out"] = list(tally.left_out)
        if task.position:
            extra |= {"positions": tally.positions, "position": task.position, "sample": task.sample}
        terms = next(
            (figure.terms for figure in task.figures if figure.name in RIGHT and figure.terms is not None), None
        )
        if terms is not None and tally.rows:
            interval = ratio_interval(*terms(tally.records))
            extra |= {"top1_interval": list(interval)} if interval is not None else {}
        if found and found[0].change_interval is not None:
            extra["change_interval"] = list(found[0].change_interval)
        if self.classes.compared and tally.rows and not task.position:
            extra |= {"won": self.classes.won, "lost": self.classes.lost}
        return extra


def _classes(scores: Tensor, reading: Reading) -> Tensor | None:
    """The class at each position, where the outputs are class scores."""
    if reading.task.predicted is None or not scores.is_floating_point() or scores.dim() < 2:
        return None
    return reading.task.predicted(scores, reading)


def _loss(tally: Tally) -> float | None:
    """Cross-entropy of a position, where outputs are class scores with labels."""
    if "loss" not in tally.rows or not tally.positions:
        return None
    return ratio({"loss": torch.cat(tally.rows["loss"])}, lambda kept: (kept["loss"], torch.tensor([tally.positions])))
