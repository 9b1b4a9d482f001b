"""Top-1, top-5, loss, agreement, a metric of the user's own, with their uncertainty.

Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927): with k of n right,
p = k/n and z = 1.96, the 95 % interval is (p + z²/2n ± z·√(p(1−p)/n + z²/4n²)) / (1 + z²/n).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from compress.batches import split_batch
from compress.errors import DataError, InputError
from compress.evaluation.runners import Runner, Target, open_runner
from compress.loading.callables import first_line, import_callable
from compress.progress import track
from compress.steps import Measurement

IGNORED = -100  # torch's `ignore_index`: positions that no figure counts
MOST_CONFUSED = 20
Z95 = 1.959963984540054


def evaluate(
    target: Target,
    loader: Iterable[Any],
    *,
    baseline: Target | None = None,
    metric: str | Callable[..., Any] | None = None,
    threads: int | None = None,
    name: str | None = None,
) -> Measurement:
    """Measure the accuracy of a module, a graph, a .pt2 or a .onnx file on every batch of `loader`.

    The first output is read as scores of classes: (N, C) with targets (N,), or (N, C, …) with targets (N, …), whose
    positions then count as samples. Other outputs and targets give agreement and `metric` only. `top1`, `top5` and
    `agreement` are fractions. `extra` holds `top1_interval` (95 %, Wilson) and counts for each class.

    Args:
        baseline: the model to agree with; run on the same batches.
        metric: see `open_metric`.

    Raises:
        DataError: no batch, a target that is out of range, or values that are not finite.
        InputError: the model rejects the inputs.
    """
    label = name or (str(target) if not isinstance(target, torch.nn.Module) else type(target).__name__)
    targets: dict[str, Target] = {label: target}
    if baseline is None:
        return evaluate_all(targets, loader, metric=metric, threads=threads)[label]
    key = f"{label} (baseline)"
    return evaluate_all({key: baseline, **targets}, loader, baseline=key, metric=metric, threads=threads)[label]


def evaluate_all(
    targets: Mapping[str, Target],
    loader: Iterable[Any],
    *,
    baseline: str | None = None,
    metric: str | Callable[..., Any] | None = None,
    threads: int | None = None,
) -> dict[str, Measurement]:
    """Measure several models in one pass over the data; agreement is with `baseline` (a key of `targets`)."""
    runners = {name: open_runner(target, threads=threads) for name, target in targets.items()}
    tallies = {name: Tally(metric=open_metric(metric)) for name in targets}
    order = sorted(runners, key=lambda name: name != baseline)  # the baseline first: the others are set beside it
    for batch in track(loader, "evaluate"):
        inputs, target = split_batch(batch)
        reference: Tally.Predicted | None = None
        for name in order:
            predicted = tallies[name].add(runners[name](*inputs), target, reference)
            reference = predicted if name == baseline else reference
    return {name: tallies[name].measurement(name, runners[name]) for name in targets}


@dataclass
class Tally:
    """Counts of one model, batch by batch; nothing grows with the data but the pairs that disagree."""

    @dataclass(frozen=True)
    class Predicted:
        """A batch as one model saw it: the class at each position (-1 where the output is no classification)."""

        classes: Tensor | None
        right: Tensor | None

    metric: Metric | None = None
    samples: int = 0
    scored: int = 0  # positions with a target
    top1: int = 0
    top5: int = 0
    classes: int = 0
    loss: float = 0.0
    agreed: int = 0
    compared: int = 0
    lost: int = 0  # right in the baseline, wrong here
    won: int = 0
    class_right: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    class_total: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    confusions: Counter[tuple[int, int]] = field(default_factory=Counter)

    def add(self, outputs: tuple[Tensor, ...], target: Any, reference: Predicted | None) -> Predicted:
        """Count one batch; return what was predicted, for the models that are set beside this one."""
        scores = outputs[0].detach().float() if outputs[0].is_floating_point() else None
        self.samples += len(outputs[0]) if outputs[0].dim() else 1
        if self.metric is not None:
            self.metric.add(outputs, target)
        if scores is None or scores.dim() < 2:
            return self.Predicted(None, None)
        if not torch.isfinite(scores).all():
            raise DataError("the model's outputs are not finite (NaN or infinity); check the data and the checkpoint")
        predicted = scores.argmax(1)
        right = self._score(scores, predicted, target)
        if reference is not None and reference.classes is not None and reference.classes.shape == predicted.shape:
            self.agreed += int((reference.classes == predicted).sum())
            self.compared += predicted.numel()
            if right is not None and reference.right is not None:
                self.lost += int((reference.right & ~right).sum())
                self.won += int((right & ~reference.right).sum())
        return self.Predicted(predicted, right)

    def _score(self, scores: Tensor, predicted: Tensor, target: Any) -> Tensor | None:
        """Count right answers; None where the target is no class index."""
        if not isinstance(target, Tensor) or target.is_floating_point() or target.dtype == torch.bool:
            return None
        if target.shape != predicted.shape:
            return None
        target, classes = target.long(), scores.shape[1]
        counted = target != IGNORED
        check_labels(target[counted], classes)
        self.classes = classes
        safe = torch.where(counted, target, 0)
        right = (predicted == safe) & counted
        self.scored += int(counted.sum())
        self.top1 += int(right.sum())
        best = scores.topk(min(5, classes), 1).indices
        self.top5 += int(((best == safe.unsqueeze(1)).any(1) & counted).sum())
        self.loss += float(torch.nn.functional.cross_entropy(scores, target, ignore_index=IGNORED, reduction="sum"))
        self._by_class(safe[counted], predicted[counted], classes)
        return right

    def _by_class(self, target: Tensor, predicted: Tensor, classes: int) -> None:
        if not len(self.class_total):
            self.class_right, self.class_total = torch.zeros(2, classes, dtype=torch.int64)
        wrong = predicted != target
        self.class_total += target.bincount(minlength=classes)
        self.class_right += target[~wrong].bincount(minlength=classes)
        self.confusions.update(zip(target[wrong].tolist(), predicted[wrong].tolist()))

    def measurement(self, name: str, runner: Runner) -> Measurement:
        """Turn the counts into figures."""
        if not self.samples:
            raise DataError("the data yields no batch; check --data and its test part")
        own = None if self.metric is None else self.metric.value()
        scored = self.scored
        return Measurement(
            name=name,
            path=None if runner.path is None else str(runner.path),
            top1=self.top1 / scored if scored else None,
            top5=self.top5 / scored if scored and self.classes > 5 else None,
            loss=self.loss / scored if scored else None,
            metric=own,
            agreement=self.agreed / self.compared if self.compared else None,
            samples=scored or self.samples,
            extra=self._extra(),
        )

    def _extra(self) -> dict[str, Any]:
        if not self.scored:
            return {}
        seen = self.class_total > 0
        extra: dict[str, Any] = {
            "top1_interval": list(wilson(self.top1, self.scored)),
            "class_right": {str(i): int(self.class_right[i]) for i in seen.nonzero().flatten().tolist()},
            "class_total": {str(i): int(self.class_total[i]) for i in seen.nonzero().flatten().tolist()},
            "confusions": [[a, b, n] for (a, b), n in sorted(self.confusions.most_common(MOST_CONFUSED))],
        }
        if self.compared:
            extra["change_interval"] = list(paired_interval(self.won, self.lost, self.scored))
            extra["won"], extra["lost"] = self.won, self.lost
        return extra


def check_labels(target: Tensor, classes: int) -> None:
    """Refuse labels that the model has no class for.

    Raises:
        DataError: a label below 0 or not below `classes`.
    """
    if not target.numel():
        return
    low, high = int(target.min()), int(target.max())
    if low < 0 or high >= classes:
        worst = low if low < 0 else high
        raise DataError(
            f"label {worst} is out of range: the model has {classes} classes (0 to {classes - 1}); "
            "check the data's labels, or give the class order with --classes"
        )


def wilson(right: int, total: int) -> tuple[float, float]:
    """Return the 95 % interval of a fraction (formula at the top).

    >>> tuple(round(x, 3) for x in wilson(455, 600))
    (0.723, 0.791)
    """
    p, z = right / total, Z95
    centre, scale = p + z * z / (2 * total), 1 + z * z / total
    spread = z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def paired_interval(won: int, lost: int, total: int) -> tuple[float, float]:
    """Return the 95 % interval of the change of accuracy between two models on the same samples.

    Only samples on which they differ carry information (McNemar 1947): with w won and l lost of n,
    the change is (w − l)/n with variance (w + l − (w − l)²/n)/n².
    """
    change = (won - lost) / total
    spread = Z95 * math.sqrt(max(0.0, won + lost - (won - lost) ** 2 / total)) / total
    return change - spread, change + spread


class Metric:
    """A metric of the user's own, in either of two forms (see `open_metric`)."""

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        self.name = name
        made = self._asked(function) if isinstance(function, type) else function
        self.whole: Any = made if isinstance(function, type) or hasattr(function, "update") else None
        if self.whole is not None and not (hasattr(self.whole, "update") and hasattr(self.whole, "compute")):
            raise InputError(f"metric {name!r} is a class without update(outputs, target) and compute()")
        self.function = function
        self.total, self.weight = 0.0, 0

    def add(self, outputs: tuple[Tensor, ...], target: Any) -> None:
        given = outputs[0] if len(outputs) == 1 else outputs
        if self.whole is not None:
            self._asked(self.whole.update, given, target)
            return
        samples = len(outputs[0]) if outputs[0].dim() else 1
        self.total += self._number(self._asked(self.function, given, target)) * samples
        self.weight += samples

    def value(self) -> float:
        if self.whole is not None:
            return self._number(self._asked(self.whole.compute))
        return self.total / max(self.weight, 1)

    def _asked(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call the user's code, which may raise anything."""
        try:
            return function(*arguments)
        except Exception as error:
            form = "a function (outputs, target) -> float, or a class with update(outputs, target) and compute()"
            raise InputError(f"metric {self.name!r} failed: {first_line(error)}; a metric is {form}") from error

    def _number(self, value: Any) -> float:
        try:
            return float(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"metric {self.name!r} returned a {type(value).__name__}; return one number") from error


def open_metric(metric: str | Callable[..., Any] | None) -> Metric | None:
    """Open a metric: a function, a class, or where to find one ("module:name" or "file.py:name").

    A function `(outputs, target) -> float` is called for each batch and averaged over samples; a class with
    `update(outputs, target)` and `compute() -> float` sees the whole data, as torchmetrics' do. `outputs` is the
    model's tensor, or the tuple of them where it has several. Higher is better.

    Raises:
        InputError: it cannot be found, or is neither.
    """
    if metric is None:
        return None
    name = metric if isinstance(metric, str) else getattr(metric, "__name__", type(metric).__name__)
    if isinstance(metric, str):
        metric = import_callable(metric)
    if not callable(metric) and not hasattr(metric, "update"):
        raise InputError(f"metric {metric!r} is neither a function nor a class with update() and compute()")
    return Metric(metric, name)
