"""Healing: a pruned network learns to give again what the unpruned one gave, without labels, within a budget of time or steps.

    L = |ŷ − y|² / var(y)  +  mean over blocks of  |ĥ − h|² / var(h)

y and h are the outputs of the unpruned network and of its blocks (of those channels that stay), ŷ and ĥ the pruned one's.
Gradient steps follow L on most of the inputs; what is held back judges the start, what is reached on the way, and the end,
and the best of them is kept: healing returns nothing worse than it was given. The rate is the largest of `RATES` that a first
part of the budget shows no much smaller one to beat. Batch-norm keeps its statistics on the way, which is where the fitted weights start from; in the end they
are measured anew, and kept where that judges better.
(Hinton et al. 2015; Romero et al. 2015, "FitNets"; Li et al. 2020, EagleEye, section 3.3.)
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from compress.batches import Batch, call, first_batches, joined
from compress.counting import counted
from compress.errors import PruningError
from compress.given import batches_of
from compress.progress import track
from compress.pruning.recalibration import recalibrate_batchnorm
from compress.pruning.verifying import tensors_of
from compress.state import copied, evaluating, slow_attention
from compress.steps import Change, Step

HEALED = "healed"  # the action of a change
RATES = (2e-3, 1e-3, 3e-4)
TOGETHER = 32  # samples of a step, at most: where time is short, more steps are worth more than surer ones
PATIENCE = 1.25  # a larger rate starts worse and ends better, unless it starts as many times worse as this
TRIAL = 0.08  # of the budget, for each rate
PASSES = 20  # over the inputs, at most: small networks need no minutes
LOOKS = 6  # at the inputs held back, on the way
MOST_SAMPLES = 8192
MOST_ELEMENTS = 2**28  # of all inputs held in memory
HELD_BACK = 256  # samples, at most a fifth
FEWEST = 10
STATISTICS = 1024  # samples that batch-norm is measured on at the end

Kept = Mapping[int, Tensor]  # dimension → the places that stay


@dataclass(frozen=True)
class _Pool:
    """Inputs to learn from and inputs to judge by."""

    learn: Batch
    judge: list[Batch]
    size: int  # of a batch


@dataclass
class _Course:
    """One run of gradient steps with a rate that falls to nothing at the end of its time."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    rate: float
    steps: int = 0
    best: float = math.inf
    state: dict[str, Any] = field(default_factory=dict)

    def look(self, judged: float) -> None:
        if judged < self.best:
            self.best = judged
            self.state = {name: value.detach().clone() for name, value in self.module.state_dict().items()}


def heal(
    module: nn.Module,
    teacher: nn.Module,
    data: Iterable[Any],
    *,
    budget_s: float = 120.0,
    steps: int | None = None,
    outputs: Mapping[str, Kept] | None = None,
    seed: int = 0,
) -> Step:
    """Return a Step whose model is `module` brought nearer to `teacher`, in at most about `budget_s` seconds.

    Args:
        module: a pruned network. It is not touched.
        teacher: the network before pruning; blocks are matched by name.
        data: batches of inputs, of which up to 8,192 samples are used. Targets are not looked at.
        steps: gradient steps, in place of the time: as many give the same weights on a slower machine, too.
        outputs: of the blocks whose outputs became narrower, the places that stay in each dimension. Others are
            matched where their shapes are equal.

    Raises:
        PruningError: the data is empty, or the budget is not positive.
    """
    if not budget_s > 0:
        raise PruningError(f"a budget of {budget_s:g} seconds heals nothing; give more, or leave healing out")
    if steps is not None and steps < 1:
        raise PruningError(f"{counted(steps, 'step')} heal nothing; give more, or leave healing out")
    budget_s = budget_s if steps is None else math.inf
    deadline = time.monotonic() + budget_s
    pool = _pool(data, seed)
    teacher, twin = copied(teacher), copied(module)
    if _is_of_images(pool.learn):  # the layout in which processors run and train convolutions faster
        for network in (teacher, twin):
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # an overload that torch does not declare
    with slow_attention(), evaluating(teacher), _trainable(twin):
        twin.eval()
        pairs = _Pairs(twin, teacher, outputs or {}, pool.judge[0])
        before = pairs.judged(pool.judge)
        trial = max(1, _passes(pool, 1)) if steps is None else max(1, round(TRIAL * steps))
        best = _best_rate(twin, pairs, pool, (TRIAL * budget_s, trial), before, seed)
        if best is not None:
            part = _passes(pool, PASSES) // LOOKS + 1 if steps is None else -(-steps // LOOKS)
            _run(best, pairs, pool, deadline, part, seed)
            _with_statistics(best, pairs, pool)
    if best is None or not best.best < before:
        values = {"error_before": before, "error_after": before}
        change = Change("", "weights kept", "healing did not help", skipped=True, values=values)
        return Step("heal", copied(module), (change,), ("healing did not help: the weights stay as they were",))
    healed = copied(module)
    healed.load_state_dict(best.state)
    values = {"error_before": before, "error_after": best.best, "steps": best.steps, "rate": best.rate}
    note = (
        f"healed without labels in {counted(best.steps, 'step')} at {best.rate:g}: the outputs' error on inputs held back "
        f"{before:.3g} → {best.best:.3g} of their variance"
    )
    return Step("heal", healed, (Change("", HEALED, values=values),), (note,))


def _pool(data: Iterable[Any], seed: int) -> _Pool:
    batches: list[Batch] = []
    elements = 0
    for batch in first_batches(batches_of(data), MOST_SAMPLES):
        batches.append(Batch.of(batch.inputs) if batch.named else Batch.of(batch.values))
        elements += sum(value.numel() for value in batch.values)
        if elements > MOST_ELEMENTS:
            break
    if not batches:
        raise PruningError("a network cannot be healed: the data is empty")
    whole = joined(batches) if len(batches) > 1 else batches[0]
    order = torch.randperm(whole.samples, generator=torch.Generator().manual_seed(seed))
    back_count = min(HELD_BACK, whole.samples // 5)
    if whole.samples < FEWEST:
        raise PruningError(f"{whole.samples} samples are too few to heal a network on; give {FEWEST} or more")
    size = max(2, min(TOGETHER, batches[0].samples, (whole.samples - back_count) // 2))
    if _is_of_images(whole):
        whole = whole.map(lambda value: value.contiguous(memory_format=torch.channels_last))
    back = _taken(whole, order[:back_count])
    return _Pool(_taken(whole, order[back_count:]), [back.part(i, i + size) for i in range(0, back_count, size)], size)


def _is_of_images(batch: Batch) -> bool:
    return all(value.dim() == 4 and value.is_floating_point() for value in batch.values)


def _taken(batch: Batch, places: Tensor) -> Batch:
    count = batch.samples
    return batch.map(lambda value: value[places] if value.dim() and len(value) == count else value)


def _shuffled(pool: _Pool, seed: int) -> Iterator[Batch]:
    """Batches of the inputs to learn from, without end, in a new order each time."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(pool.learn.samples, generator=generator)
        for places in order.split(pool.size):
            if len(places) > 1:  # batch-norm needs two
                yield _taken(pool.learn, places)


class _Pairs:
    """What the two networks give for the same inputs, and how far apart it is."""

    def __init__(self, module: nn.Module, teacher: nn.Module, outputs: Mapping[str, Kept], sample: Batch) -> None:
        self.module, self.teacher = module, teacher
        self.kept: dict[str, Kept] = {}
        self._wanted: list[list[Tensor]] | None = None  # of the teacher, for the inputs that judge
        names = [name for name, part in module.named_modules() if name and any(True for _ in part.children())]
        before = dict(teacher.named_modules())
        candidates = {name: outputs.get(name, {}) for name in names if name in before}
        self.kept = candidates
        with torch.no_grad():
            _, given = self._watched(module, sample)
            _, wanted = self._watched(teacher, sample)
        self.kept = {
            name: kept
            for name, kept in candidates.items()
            if name in given and name in wanted and given[name].shape == _cut(wanted[name], kept).shape
        }

    def loss(self, batch: Batch) -> Tensor:
        with torch.no_grad():
            wanted, blocks = self._watched(self.teacher, batch)
        given, own = self._watched(self.module, batch)
        parts = [_apart(own[name], _cut(blocks[name], kept)) for name, kept in self.kept.items()]
        total = _outputs_apart(given, wanted)
        return total + torch.stack(parts).mean() if parts else total

    @torch.no_grad()
    def judged(self, batches: Sequence[Batch]) -> float:
        """The error of the outputs alone, over all the batches."""
        if self._wanted is None:
            self._wanted = [tensors_of(call(self.teacher, item)) for item in batches]
        pairs = zip(batches, self._wanted, strict=True)
        total = sum(float(_outputs_apart(call(self.module, item), wanted)) * item.samples for item, wanted in pairs)
        total /= sum(item.samples for item in batches)
        return total if math.isfinite(total) else math.inf

    def _watched(self, module: nn.Module, batch: Batch) -> tuple[Any, dict[str, Tensor]]:
        found: dict[str, Tensor] = {}

        def watch(name: str) -> Any:
            def hook(part: nn.Module, args: Any, output: Any) -> None:
                if isinstance(output, Tensor) and output.is_floating_point():
                    found[name] = output

            return hook

        parts = dict(module.named_modules())
        handles = [parts[name].register_forward_hook(watch(name)) for name in self.kept]
        try:
            return call(module, batch), found
        finally:
            for handle in handles:
                handle.remove()


def _cut(value: Tensor, kept: Kept) -> Tensor:
    for dim, places in kept.items():
        value = value.index_select(dim, places.to(value.device))
    return value


def _apart(given: Tensor, wanted: Tensor) -> Tensor:
    spread = wanted.float().var().clamp(min=1e-8)
    return (given.float() - wanted.float()).square().mean() / spread


def _outputs_apart(given: Any, wanted: Any) -> Tensor:
    pairs = zip(tensors_of(given), tensors_of(wanted), strict=False)
    parts = [_apart(a, b) for a, b in pairs if b.is_floating_point() and a.shape == b.shape]
    if not parts:
        raise PruningError("a network without an output of real numbers cannot be healed")
    return torch.stack(parts).mean()


def _best_rate(
    module: nn.Module, pairs: _Pairs, pool: _Pool, trial: tuple[float, int], before: float, seed: int
) -> _Course | None:
    """Try each rate for a short while, of so many seconds and steps, from the same start.

    Returns:
        The best course, its weights in the module.
    """
    start = {name: value.detach().clone() for name, value in module.state_dict().items()}
    best: _Course | None = None
    ends: dict[int, tuple[float, dict[str, Any]]] = {}
    for rate in RATES:
        module.load_state_dict(start)
        parameters = [value for value in module.parameters() if value.requires_grad]
        course = _Course(module, torch.optim.AdamW(parameters, rate, weight_decay=0.0), rate)
        _steps(course, pairs, pool, time.monotonic() + trial[0], seed, most=trial[1])
        judged = pairs.judged(pool.judge)
        ends[id(course)] = (judged, {name: value.detach().clone() for name, value in module.state_dict().items()})
        if math.isfinite(judged) and (best is None or PATIENCE * judged < ends[id(best)][0]):
            best = course
    if best is None:
        module.load_state_dict(start)
        return None
    judged, state = ends[id(best)]
    module.load_state_dict(state)
    best.best, best.state = before, start
    best.look(judged)
    return best


def _passes(pool: _Pool, count: int) -> int:
    """The number of steps of so many passes over the inputs."""
    return count * -(-pool.learn.samples // pool.size)


def _run(course: _Course, pairs: _Pairs, pool: _Pool, deadline: float, most: int, seed: int) -> None:
    """Go on in parts of at most so many steps, to the deadline at most; look after each."""
    start = time.monotonic()
    for part in track(range(LOOKS), "healing", unit="look"):
        until = start + (deadline - start) * (part + 1) / LOOKS
        _steps(course, pairs, pool, until, seed + 1 + part, most=most, span=(start, deadline), part=part)
        course.look(pairs.judged(pool.judge))


def _steps(
    course: _Course,
    pairs: _Pairs,
    pool: _Pool,
    until: float,
    seed: int,
    *,
    most: int,
    span: tuple[float, float] | None = None,
    part: int = 0,
) -> None:
    """Go on until a moment, or for at most so many steps; over a whole `span` of `LOOKS` parts the rate falls to nothing."""
    first = course.steps
    for batch in _shuffled(pool, seed):
        done = 0.0
        if span is not None:
            by_time = (time.monotonic() - span[0]) / max(span[1] - span[0], 1e-9)
            done = max(by_time, (part + (course.steps - first) / most) / LOOKS)
        for group in course.optimizer.param_groups:
            group["lr"] = course.rate * 0.5 * (1 + math.cos(math.pi * min(max(done, 0.0), 1.0)))
        with torch.enable_grad():
            loss = pairs.loss(batch)
            course.optimizer.zero_grad()
            loss.backward()
        nn.utils.clip_grad_norm_([value for group in course.optimizer.param_groups for value in group["params"]], 1.0)
        course.optimizer.step()
        course.steps += 1
        if time.monotonic() >= until or course.steps - first >= most or not bool(loss.isfinite()):
            return


def _with_statistics(course: _Course, pairs: _Pairs, pool: _Pool) -> None:
    """Measure batch-norm anew with the best weights, and keep that where it judges better."""
    course.module.load_state_dict(course.state)
    batches = [pool.learn.part(i, i + pool.size) for i in range(0, min(pool.learn.samples, STATISTICS), pool.size)]
    again = recalibrate_batchnorm(course.module, [item for item in batches if item.samples > 1])
    course.module.load_state_dict(again.state_dict())
    course.look(pairs.judged(pool.judge))


@contextlib.contextmanager
def _trainable(module: nn.Module) -> Iterator[None]:
    """Follow gradients of what the user trains, or of everything where all is frozen."""
    frozen = not any(value.requires_grad for value in module.parameters())
    if frozen:
        module.requires_grad_(True)
    try:
        yield
    finally:
        if frozen:
            module.requires_grad_(False)
