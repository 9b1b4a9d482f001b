"""What the user asks to be measured, opened: own metrics, the task, the label that no figure counts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from compress.errors import InputError, nearest
from compress.measures.own import Metric, open_metrics
from compress.measures.tally import Tally
from compress.measures.task import Reading
from compress.measures.task_choice import choose
from compress.measures.tasks import MEASURES, check_task


@dataclass(frozen=True)
class Measures:
    """Own metrics (the first decides), else the first figure of the task decides."""

    metrics: tuple[Metric, ...] = ()
    task: str = "auto"
    ignore_label: int | None = None
    leading: str = ""  # a figure of the task that decides in place of its first
    reading: Reading | None = None  # found already
    lenient: bool = False  # targets that fit no task leave its figures out, with the reason in a note

    @property
    def asked(self) -> Measures | None:
        """These, where the user named the figure that decides; None where the task's first does."""
        return self if self.metrics or self.leading else None

    def settled(self, reading: Reading) -> Measures:
        """The same, read that way whatever the data's first batch looks like."""
        return replace(self, reading=reading)

    def forgiving(self) -> Measures:
        """The same at the end of hours of work, whose result no label may cost: what cannot be read is left out."""
        reading = None if self.reading is None else replace(self.reading, lenient=True)
        return replace(self, reading=reading, lenient=True)

    def read(self, outputs: tuple[Tensor, ...], target: Any) -> Reading:
        """Find how outputs and targets are to be read, from the float model's first batch."""
        if self.reading is not None:
            return self.reading
        return choose(
            self.task, outputs[0], target, ignore_label=self.ignore_label, lenient=self.lenient or bool(self.metrics)
        )

    def start(self, reading: Reading) -> Tally:
        """A fresh tally for one model."""
        return Tally(reading, self.metrics, self.leading)


def open_measures(metric: Any = None, *, task: str = "auto", ignore_label: int | None = None) -> Measures:
    """Open what the user wants measured; a `Measures` is taken as it stands.

    A whole data set is scored like this, anywhere:

        measures = open_measures("min:my.py:rmse")
        for x, y in batches:
            outputs = (model(x),)
            tally = tally or measures.start(measures.read(outputs, y))
            tally.add(outputs, y)
        deciding, *others = tally.measures()

    Args:
        metric: see `measures.own.open_metrics`; or the name of a figure of the task (RMSE), which then decides.
        task: a name of `TASKS`, or auto: read from the first batch, with a note.
        ignore_label: positions with this label count in no figure; −100 never does.

    Raises:
        InputError: a metric that cannot be found or is none, or an unknown task.
    """
    if isinstance(metric, Measures):
        return metric
    check_task(task)
    several = [] if metric is None else list(metric) if isinstance(metric, (list, tuple)) else [metric]
    leading, own = _split(several)
    return Measures(open_metrics(own), task, ignore_label, leading)


def _split(metrics: list[Any]) -> tuple[str, list[Any]]:
    """Tell the name of a figure that we have from metrics of the user's own; such a name, given first, decides."""
    named = [item for item in metrics if isinstance(item, str) and ":" not in item]
    known = {figure.name.lower(): figure.name for figure in MEASURES.values()}
    for name in named:
        if name.lower() not in known:
            raise InputError(
                f"no figure is named {name!r}; {nearest(name, sorted(known.values()))}; a metric of your own is FILE.py:NAME"
            )
    if len(named) > 1 or (named and len(metrics) > 1):
        raise InputError(
            f"metric {named[0]!r} is a figure of the task; give it alone, or your own alone: figures of the task stand beside those"
        )
    return known[named[0].lower()] if named else "", [item for item in metrics if item not in named]
