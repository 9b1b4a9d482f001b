"""What one model scores: records and metrics batch by batch, turned into measures at the end."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from compress.errors import DataError
from compress.measures import ranked
from compress.measures.figure import TOTAL, Figure, is_number
from compress.measures.intervals import DRAWS, bootstrap, paired_ratio_interval, quantiles, ratio_interval
from compress.measures.own import Metric, MetricTally, WholeTally
from compress.measures.task import Labelled, Reading, Seen
from compress.measures.task_choice import arranged
from compress.steps import Measure

SLOW_S = 0.01  # a metric of the user's own that takes longer is not resampled
LONG_RANKING = 50_000  # numbers that are sorted; 50 draws of so many take three seconds


class Tally:
    """Figures of one model over a data set. Of each sample a fixed number of numbers is kept, whatever its size.

    A metric of the user's own that is a plain function holds all outputs, because it is called on the whole data.
    """

    is_baseline = False  # set where other models are set beside this one

    def __init__(self, reading: Reading, metrics: tuple[Metric, ...] = (), leading: str = "") -> None:
        self.reading, self.leading = reading, leading
        self.metrics: list[tuple[Metric, MetricTally]] = [(metric, metric.start()) for metric in metrics]
        self.rows: dict[str, list[Tensor]] = defaultdict(list)
        self.totals: dict[str, Tensor] = {}
        self.samples = self.positions = 0
        self.has_reference = False
        self._draws: dict[str, Tensor | None] = {}
        self.dropped = ""  # why the task's figures are missing, where a metric of the user's own governs

    def add(self, outputs: tuple[Tensor, ...], target: Any, reference: tuple[Tensor, ...] | None = None) -> Seen:
        """Count one batch; `reference` is what the baseline gave. Returns the batch as the task saw it.

        Raises:
            DataError: targets or labels that the task has not, or outputs that are not finite.
            InputError: the user's metric failed.
        """
        outputs = tuple(value.detach().cpu() for value in outputs)
        scores = outputs[0]
        self.samples += len(scores) if scores.dim() else 1
        for _, tally in self.metrics:
            tally.add(outputs, target)
        if not scores.is_floating_point() or not scores.dim():
            return Seen(scores, target)
        if not bool(torch.isfinite(scores).all()):
            raise DataError("the model's outputs are not finite (NaN or infinity); check the data and the checkpoint")
        self.has_reference |= reference is not None
        return self._record(scores.float(), target, None if reference is None else reference[0].detach().cpu())

    def _record(self, scores: Tensor, target: Any, reference: Tensor | None) -> Seen:
        task = self.reading.task
        scores, target = arranged(scores, target, self.reading)
        seen = Seen(scores, target, reference)
        needs_labels = task.name != "embedding"
        if task.record is None or self.dropped or (target is None and needs_labels):
            return seen
        try:
            labelled = None if task.labelled is None else task.labelled(seen, self.reading)
            seen = Seen(scores, target, reference, labelled)
            kept = task.record(seen, self.reading)
        except DataError as error:
            if not self.reading.lenient:
                raise
            self.dropped = str(error)
            self.rows.clear()
            self.totals.clear()
            return Seen(scores, target, reference)
        self._keep(kept, labelled)
        return seen

    def _keep(self, kept: dict[str, Tensor], labelled: Labelled | None) -> None:
        self.positions += 0 if labelled is None else int(labelled.counted.sum())
        for name, value in kept.items():
            if name.startswith(TOTAL):
                self.totals[name] = self.totals.get(name, torch.zeros(())) + value
            else:
                self.rows[name].append(value)

    @property
    def records(self) -> dict[str, Tensor]:
        return {**{name: torch.cat(parts) for name, parts in self.rows.items()}, **self.totals}

    def values(self) -> dict[str, float]:
        """Every figure that could be computed, by name; no intervals."""
        return {item.name: item.value for item in self.measures(intervals=False)}

    def measures(self, base: Tally | None = None, *, intervals: bool = True) -> tuple[Measure, ...]:
        """Return the figures, the user's own metrics first; the first decides and has intervals.

        Args:
            base: the baseline's tally, for the interval of the change.
        """
        found = [self._of_metric(at, base, intervals and at == 0) for at in range(len(self.metrics))]
        records = self.records
        if not records:
            return tuple(found)
        for figure in self._figures():
            value = figure.compute(records)
            if value is not None:
                wanted = intervals and not found
                found.append(self._with_intervals(figure, value, base) if wanted else figure.measured(value))
        return tuple(found)

    def _with_intervals(self, figure: Figure, value: float, base: Tally | None) -> Measure:
        if figure.terms is not None:
            numerator, denominator = figure.terms(self.records)
            change = None
            if base is not None:
                change = paired_ratio_interval(numerator, figure.terms(base.records)[0], denominator)
            return figure.measured(value, ratio_interval(numerator, denominator), change)
        mine, theirs = self._drawn(figure), None if base is None else base._drawn(figure)
        return figure.measured(value, *_resampled(mine, theirs))

    def _drawn(self, figure: Figure) -> Tensor | None:
        """Resampled values; None of what sums over all samples, and of rankings that take too long."""
        rows = {name: torch.cat(parts) for name, parts in self.rows.items()}
        ranking = "torchmetrics" in figure.needs
        too_long = ranking and sum(map(Tensor.numel, rows.values())) > LONG_RANKING
        if figure.needs_totals or too_long:
            return None
        if figure.name not in self._draws:
            self._draws[figure.name] = bootstrap(
                len(next(iter(rows.values()))),
                lambda index: figure.compute({name: value[index] for name, value in rows.items()}),
                DRAWS // 4 if ranking else DRAWS,
            )
        return self._draws[figure.name]

    def _of_metric(self, at: int, base: Tally | None, intervals: bool) -> Measure:
        metric, tally = self.metrics[at]
        value = tally.value()
        start = time.perf_counter()
        mine = theirs = None
        if intervals and is_number(value) and isinstance(tally, WholeTally):
            tally.value()
            if time.perf_counter() - start < SLOW_S:
                mine = self._metric_drawn(at)
                theirs = None if base is None else base._metric_drawn(at)
        return Measure(metric.name, metric.unit or "", metric.direction, value, *_resampled(mine, theirs))

    def _metric_drawn(self, at: int) -> Tensor | None:
        """Resampled values of a function on the whole data; None where it has none on some draw."""
        metric, tally = self.metrics[at]
        if not isinstance(tally, WholeTally):
            return None
        if metric.spec not in self._draws:
            try:
                self._draws[metric.spec] = bootstrap(tally.joined.samples, tally.resampled, DRAWS)
            except Exception:  # the user's function may refuse a draw with repetitions, which the whole data never is
                self._draws[metric.spec] = None
        return self._draws[metric.spec]

    def _figures(self) -> list[Figure]:
        """Those that can be computed here, the one that the user named first."""
        there = [
            figure
            for figure in self.reading.task.figures
            if ("torchmetrics" not in figure.needs or ranked.installed())
            and ("baseline" not in figure.needs or self.has_reference or self.is_baseline)
        ]
        return sorted(there, key=lambda figure: figure.name != self.leading)

    @property
    def left_out(self) -> tuple[str, ...]:
        """Figures that need an extra which is not installed, each with the line that installs it."""
        names = [figure.name for figure in self.reading.task.figures if "torchmetrics" in figure.needs]
        if not names or ranked.installed() or not self.rows:
            return ()
        return (f"{' and '.join(names)} left out: {ranked.INSTALL}",)


def _resampled(
    mine: Tensor | None, theirs: Tensor | None
) -> tuple[tuple[float, float] | None, tuple[float, float] | None]:
    """The interval of a value and that of its change from the baseline's, on the same draws."""
    if mine is None:
        return None, None
    return quantiles(mine), None if theirs is None else quantiles(mine - theirs)
