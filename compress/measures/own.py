"""Metrics of the user's own: a function, a class, an object of torchmetrics, and which way is better."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from compress.errors import InputError, first_line
from compress.loading.callables import import_callable
from compress.measures.figure import HIGHER, LOWER
from compress.measures.joining import Joined

DIRECTIONS = {"min": LOWER, "max": HIGHER}
FORM = "a function (outputs, target) -> float, or a class with update(outputs, target) and compute()"
# Arguments of a class that the model's outputs answer, so that `torchmetrics.classification:MulticlassF1Score` needs none.
COUNTS = ("num_classes", "num_labels")


@dataclass(frozen=True)
class Metric:
    """A metric of the user's own.

    `source` is a function `(outputs, target) -> float`, called once on all samples; a class with `update(outputs, target)`
    and `compute()`; or an object of such a class, of which each model gets a copy. What is not given here is read from
    attributes of the source: `higher_is_better` (as torchmetrics has it), `per_batch` (call the function for each batch and
    average over samples), `unit` ("%" prints a fraction in percent, and limits are then in points).
    """

    source: Any
    name: str = ""
    better: str = ""  # "higher" or "lower"; "": as the source says, else higher
    unit: str | None = None
    per_batch: bool | None = None
    spec: str = ""  # as the user wrote it, for messages

    def __post_init__(self) -> None:
        source = self.source
        if not callable(source) and not hasattr(source, "update"):
            raise InputError(f"metric {source!r} is neither a function nor a class with update() and compute()")
        name = self.name or getattr(source, "__name__", type(source).__name__)
        found = {
            "name": name,
            "spec": self.spec or name,
            "unit": _unit(source) if self.unit is None else self.unit,
            "per_batch": bool(getattr(source, "per_batch", False)) if self.per_batch is None else self.per_batch,
        }
        if self.better not in ("", HIGHER, LOWER):
            raise InputError(f"metric {name!r}: better is {self.better!r}; it must be 'higher' or 'lower'")
        for key, value in found.items():
            object.__setattr__(self, key, value)
        if self.is_running and not (hasattr(source, "update") and hasattr(source, "compute")):
            raise InputError(f"metric {self.spec!r} is a class without update(outputs, target) and compute()")

    @property
    def is_running(self) -> bool:
        """Whether it sees the data batch by batch through update()."""
        return isinstance(self.source, type) or hasattr(self.source, "update")

    @property
    def direction(self) -> str:
        return self.better or _stated(self.source) or HIGHER

    @property
    def direction_is_stated(self) -> bool:
        return bool(self.better or _stated(self.source))

    @property
    def holds_all_outputs(self) -> bool:
        return not self.is_running and not self.per_batch

    def start(self) -> MetricTally:
        """A fresh tally for one model."""
        if self.is_running:
            return RunningTally(self)
        return BatchTally(self) if self.per_batch else WholeTally(self)

    def asked(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call the user's code, which may raise anything.

        Raises:
            InputError: it did; in one line.
        """
        try:
            return function(*arguments)
        except Exception as error:
            raise InputError(f"metric {self.spec!r} failed: {first_line(error)}; a metric is {FORM}") from error

    def number(self, value: Any) -> float:
        """Read what the user's code returned.

        Raises:
            InputError: it is not one number.
        """
        sized = isinstance(value, (tuple, list, dict))
        size = len(value) if sized else value.numel() if isinstance(value, Tensor) else getattr(value, "size", 1)
        if isinstance(size, int) and size != 1:
            raise InputError(
                f"metric {self.spec!r} returned {size} numbers ({type(value).__name__}); return one number"
            )
        try:
            return float(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"metric {self.spec!r} returned a {type(value).__name__}; return one number") from error


class MetricTally(Protocol):
    """What one model scores in one metric, batch by batch."""

    def add(self, outputs: tuple[Tensor, ...], target: Any) -> None: ...

    def value(self) -> float: ...


class WholeTally:
    """All outputs and targets, joined; the function is called once."""

    def __init__(self, metric: Metric) -> None:
        self.metric, self.joined = metric, Joined(metric.spec)

    def add(self, outputs: tuple[Tensor, ...], target: Any) -> None:
        self.joined.add(outputs, target)

    def value(self) -> float:
        return self.metric.number(self.metric.asked(self.metric.source, *self.joined.all()))

    def resampled(self, index: Tensor) -> float:
        """The value on a draw of samples, with repetitions."""
        return self.metric.number(self.metric.asked(self.metric.source, *self.joined.drawn(index)))


class BatchTally:
    """A function called for each batch, averaged over samples."""

    def __init__(self, metric: Metric) -> None:
        self.metric, self.total, self.weight = metric, 0.0, 0

    def add(self, outputs: tuple[Tensor, ...], target: Any) -> None:
        samples = len(outputs[0]) if outputs[0].dim() else 1
        self.total += samples * self.metric.number(self.metric.asked(self.metric.source, plain(outputs), target))
        self.weight += samples

    def value(self) -> float:
        return self.total / max(self.weight, 1)


class RunningTally:
    """An object with update() and compute(); one of its own for each model."""

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self.object: Any = None if isinstance(metric.source, type) else _copy(metric.source)

    def add(self, outputs: tuple[Tensor, ...], target: Any) -> None:
        if self.object is None:
            source = self.metric.source
            self.object = self.metric.asked(lambda: source(**_answers(source, outputs)))
        given = plain(outputs)
        if _is_torchmetrics(self.object):
            given = _as_the_target(given, target)
        self.metric.asked(self.object.update, given, target)

    def value(self) -> float:
        return self.metric.number(self.metric.asked(self.object.compute))


def open_metrics(metric: Any) -> tuple[Metric, ...]:
    """Open the user's metrics: None, one, or several (a list or tuple), the first of which decides.

    Each is a function, a class or object with `update` and `compute` (those of torchmetrics too), a `Metric`, or text that
    says where to find one: `FILE.py:NAME` or `package.module:NAME`, with `min:` or `max:` in front where the source does
    not say which way is better.

    Raises:
        InputError: one cannot be found, is none of these, or two have one name.
    """
    if metric is None:
        return ()
    several: Sequence[Any] = metric if isinstance(metric, (list, tuple)) else [metric]
    found = tuple(_open(item) for item in several)
    names = [item.name for item in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"two metrics are named {twice!r}; rename one, or give it once")
    return found


def _open(metric: Any) -> Metric:
    if isinstance(metric, Metric):
        return metric
    if not isinstance(metric, str):
        return Metric(metric)
    direction, _, rest = metric.partition(":")
    better = DIRECTIONS.get(direction, "") if ":" in rest else ""
    place = rest if better else metric
    return Metric(import_callable(place), name=place.rpartition(":")[2], better=better, spec=metric)


def plain(outputs: tuple[Tensor, ...]) -> Any:
    """What the user's code is given: the model's tensor, or the tuple of them where it has several."""
    return outputs[0] if len(outputs) == 1 else outputs


def _stated(source: Any) -> str:
    declared = getattr(source, "higher_is_better", None)
    return "" if declared is None else HIGHER if declared else LOWER


def _unit(source: Any) -> str:
    """As the source says; torchmetrics' that lie in [0, 1] are fractions."""
    if isinstance(unit := getattr(source, "unit", None), str):
        return unit
    bounds = [getattr(source, f"plot_{side}_bound", None) for side in ("lower", "upper")]
    return "%" if _is_torchmetrics(source) and bounds == [0.0, 1.0] else ""


def _is_torchmetrics(source: Any) -> bool:
    kind = source if isinstance(source, type) else type(source)
    return any(base.__module__.startswith("torchmetrics.") for base in kind.__mro__)


def _copy(source: Any) -> Any:
    """A fresh object: the user's own, which may have seen data, stays as it is."""
    fresh = copy.deepcopy(source)
    if hasattr(fresh, "reset"):
        fresh.reset()
    return fresh


def _answers(source: type, outputs: tuple[Tensor, ...]) -> dict[str, Any]:
    """Arguments that a class insists on and the outputs answer: how many classes, and that they are several."""
    if not _is_torchmetrics(source):
        return {}
    wanted = [name for name, item in inspect.signature(source).parameters.items() if item.default is item.empty]
    classes = outputs[0].shape[1] if outputs[0].dim() > 1 else 1
    found: dict[str, Any] = {name: max(classes, 2) for name in COUNTS if name in wanted}
    if "task" in wanted:
        several = {"task": "multiclass", "num_classes": classes}
        found |= several if classes > 1 else {"task": "binary"}
    return found


def _as_the_target(outputs: Any, target: Any) -> Any:
    """(N, 1) beside targets of (N,) becomes (N,): torchmetrics wants one shape."""
    if isinstance(outputs, Tensor) and isinstance(target, Tensor) and outputs.dim() == target.dim() + 1:
        return outputs.squeeze(1) if outputs.shape[1] == 1 else outputs
    return outputs


def draw(samples: int, generator: torch.Generator) -> Tensor:
    """As many samples as there are, drawn with repetitions."""
    return torch.randint(samples, (samples,), generator=generator)
