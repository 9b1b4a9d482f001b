"""One pass over the training data, and one over the data it is judged on."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from compress.batches import read_batch
from compress.counting import counted
from compress.errors import CompressError, TrainingError
from compress.progress import track
from compress.state import as_in_training, evaluating
from compress.training.criterion import BATCH, MODEL, Criterion, Fed
from compress.training.distillation import Objective
from compress.training.main_output import find_tensor
from compress.training.metrics import Tally, is_classification
from compress.training.mixup import mixed
from compress.training.monitoring import Judge
from compress.training.optimizers import clip
from compress.training.precision import autocast
from compress.training.within import look_ahead

if TYPE_CHECKING:
    from compress.training.run_state import Run


class DivergedError(TrainingError):
    """A loss or a gradient that is not finite."""


def train_epoch(run: Run) -> dict[str, float]:
    """Train once over the data; return `train/loss` and, for classes, `train/top1` of all processes.

    The samples behind one optimizer step are divided into processes × `accumulate` forward passes. Each
    loss is a mean over its own samples, so it is weighted by their share of the step's: the sum is the mean
    over the large batch, for the last, incomplete group too. A resumed run passes over the steps that are done.

    Raises:
        DivergedError: a loss that is not finite.
        TrainingError: a label that the model has no class for.
    """
    train_mode(run.module)
    done = run.begin_epoch()
    left = run.batches.sampler.counted if run.batches.sampler else None
    loader = run.batches.open(run.epoch)
    bar = track(loader, f"epoch {run.epoch + 1}/{run.options.epochs}") if run.world.leads else None
    groups: Iterable[list[Any]] = _grouped(loader if bar is None else bar, run.options.accumulate)
    if run.start_loss is None and run.epoch == 0 and not done:
        run.start_loss, groups = look_ahead(run, groups, functools.partial(_loss_now, run))
    for number, group in enumerate(groups):
        counted, left = _counted([fed(item, run) for item in group], left)
        if number < done:
            if number == done - 1:
                run.reach_saved_state()
            continue
        run.within.losses.append(train_step(run, counted, run.within.tally))
        run.within.groups = number + 1
        run.save_within()
        if bar is not None and not bar.disable:
            bar.set_postfix(run.within.tally.postfix(), refresh=False)
    tally = run.within.tally
    if tally.count == 0 and run.world.size == 1:
        raise TrainingError("the training loader gave no batch")
    return tally.over(run.world, "train")


def groups_of(run: Run, epoch: int) -> Iterator[list[Fed]]:
    """The batches of an epoch, read, in groups that share one optimizer step."""
    left = run.batches.sampler.counted if run.batches.sampler else None
    for group in _grouped(run.batches.open(epoch), run.options.accumulate):
        counted, left = _counted([fed(item, run) for item in group], left)
        yield counted


def _counted(batches: list[Fed], left: int | None) -> tuple[list[Fed], int | None]:
    """Say how many samples of each batch count: those past `left` only pad, see EpochSampler."""
    if left is None:
        return batches, None
    found = []
    for batch in batches:
        count = batch.count
        if 0 < left < count and batch.batch is not None:
            batch = replace(batch, batch=batch.batch.part(0, left), raw=_each(batch.raw, functools.partial(_cut, left)))
        found.append(replace(batch, count=min(count, left)))
        left -= min(count, left)
    return found, left


def train_step(run: Run, batches: list[Fed], tally: Tally) -> float:
    """One optimizer step from one group of batches; return the loss of this process."""
    run.schedule.before_step()
    values = _gradients(run, batches, tally)
    if run.options.optimizer == "lbfgs":
        _searched(run, batches, values)
    else:
        run.scaler.step(run.optimizer)
    run.scaler.update()
    run.optimizer.zero_grad(set_to_none=True)
    run.zeros.hold()
    run.step += 1
    for callback in run.after_step:
        callback(run)
    if run.average is not None:
        run.average.update(run.module)
    return values


def _gradients(run: Run, batches: list[Fed], tally: Tally) -> float:
    """Leave the gradients of one step in the parameters; return its loss, a mean over the samples of this process."""
    total, here = _total(run, sum(batch.count for batch in batches)), 0.0
    for index, batch in enumerate(batches):
        run.counted.now = batch.count > 0
        share = batch.count * run.world.size / total  # times size: DDP divides by it
        with contextlib.nullcontext() if index == len(batches) - 1 else run.unsynchronized():
            here += _backward(run, batch, share, tally, index) * batch.count
    if run.options.clip_norm is not None or run.options.clip_value is not None:
        run.scaler.unscale_(run.optimizer)
        clip(run.module, run.options)
    if run.world.size > 1 and not run.scaler.is_enabled():
        _check_gradients(run)
    return here / max(sum(batch.count for batch in batches), 1)


def _searched(run: Run, batches: list[Fed], first: float) -> None:
    """L-BFGS asks for loss and gradients several times a step; the first answer is there already."""
    known = [first]

    def closure() -> float:
        if known:
            return known.pop()
        run.optimizer.zero_grad(set_to_none=True)
        return _gradients(run, batches, Tally())

    run.optimizer.step(closure)


def _backward(run: Run, batch: Fed, share: float | Tensor, tally: Tally, index: int) -> float:
    with autocast(run.options, run.world.device):
        output, loss = _forward(run, run.wrapped, _aimed(run, batch, index), batch.target)
    value = float(loss.detach())
    if not math.isfinite(value) and run.world.size == 1:
        raise DivergedError(f"the loss is {value} at {_moment(run)}")
    run.scaler.scale(loss * share if isinstance(share, Tensor) or share != 1.0 else loss).backward()
    if batch.count:
        tally.add(value, batch.count, output, batch.target)
    return value


def _aimed(run: Run, batch: Fed, index: int) -> Fed:
    """The batch as it is trained on: blended, with mixup."""
    if not run.options.mixup:
        return batch
    seed = (run.options.seed, run.step, run.world.rank, index)
    return replace(batch, batch=mixed(batch.read, run.options.mixup, seed))


def _moment(run: Run) -> str:
    at = f"step {run.step + 1} (epoch {run.epoch + 1}), learning rate {run.schedule.lr:g}"
    return f"{at}; lower lr, or set clip_norm{run.kept()}"


def _check_gradients(run: Run) -> None:
    """What every process sees alike, so that all of them stop: their loss is their own, the gradient that of all."""
    gradients = [value.grad for value in run.module.parameters() if value.grad is not None]
    if gradients and not bool(torch.isfinite(torch.nn.utils.get_total_norm(gradients))):
        raise DivergedError(f"a gradient is not finite at {_moment(run)}")


def _forward(run: Run, module: nn.Module, batch: Fed, target: Any) -> tuple[Any, Tensor]:
    """Outputs and loss of the run's objective."""
    check = functools.partial(check_targets, run.criterion, target, run.batches.classes) if run.step == 0 else None
    try:
        return guarded(run.objective, module, batch, target, check)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise TrainingError(
            f"a batch of {batch.count} sample is too small for batch-norm (step {run.step + 1}); "
            "use another batch_size, or drop_last"
        ) from error


def _loss_now(run: Run, group: list[Any]) -> tuple[float, int]:
    """The objective of a group at the weights as they are (nothing is learned), and how many samples it is of."""
    total, count = 0.0, 0
    for index, item in enumerate(group):
        batch = fed(item, run)
        with autocast(run.options, run.world.device):
            _, loss = _forward(run, run.module, _aimed(run, batch, index), batch.target)
        total, count = total + float(loss) * batch.count, count + batch.count
    return total, count


def guarded(
    objective: Objective, module: nn.Module, batch: Fed, target: Any, check: Callable[[Any], None] | None = None
) -> tuple[Any, Tensor]:
    """Call an objective; what a loss refuses is one line that names shapes. `check` is asked about the outputs first.

    Raises:
        TrainingError: targets that the loss does not take, or a result that is no number.
    """
    seen: list[Any] = []

    def watch(_module: nn.Module, _inputs: Any, output: Any) -> None:
        seen.append(output)
        if check is not None:
            check(output)

    watching = module.register_forward_hook(watch)
    try:
        output, loss = objective(module, batch)
    except (CompressError, torch.OutOfMemoryError):
        raise
    except IndexError as error:
        if not seen or "out of bounds" not in str(error):
            raise TrainingError(f"the loss fails: {str(error).splitlines()[0]}") from error
        check_classes(find_tensor(seen[-1]), target)
        raise TrainingError(f"the loss refuses a label: {str(error).splitlines()[0]}") from error
    except (RuntimeError, ValueError, TypeError, AttributeError, KeyError) as error:
        found = find_tensor(seen[-1]) if seen else None
        if found is not None and isinstance(target, Tensor):
            raise TrainingError(
                f"the loss does not take an output of {tuple(found.shape)} with a target of {tuple(target.shape)} "
                f"{str(target.dtype).removeprefix('torch.')}: {str(error).splitlines()[0]}"
            ) from error
        raise
    finally:
        watching.remove()
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise TrainingError(
            f"the loss must return one number as a tensor, got {getattr(loss, 'shape', type(loss).__name__)}"
        )
    return output, loss.reshape(())


def check_targets(criterion: Criterion, target: Any, declared: int | None, output: Any) -> None:
    """Refuse what a built-in loss cannot mean, before it makes nonsense of it.

    Raises:
        TrainingError: says which loss fits, or which label has no output.
    """
    criterion.check(output, target)
    if criterion.name == "cross_entropy":
        check_classes(find_tensor(output), target, declared)


def _total(run: Run, count: int) -> float | Tensor:
    if run.world.size == 1:
        return float(count)
    total = torch.tensor(float(count), device=run.world.device)
    torch.distributed.all_reduce(total)
    return total  # stays on the device: reading it would wait for it


def evaluate_epoch(run: Run, module: nn.Module, description: str = "evaluating") -> dict[str, float]:
    """Return `eval/loss`, for classes `eval/top1`, and the user's metrics; every sample of every process counted once."""
    tally, world = Tally(run.criterion), run.world
    judge = Judge(run.measures)
    batches = run.batches.evaluation
    assert batches is not None
    states = run.random() if run.criterion.form == MODEL else None  # what samples its own targets goes on as if unseen
    with evaluating(module):
        if run.loses_in_training:
            as_in_training(module)
        for item in track(batches, description) if world.leads else batches:
            batch = fed(item, run)
            check = None
            if run.step == 0:
                check = functools.partial(check_targets, run.criterion, batch.target, run.batches.classes)
            with autocast(run.options, world.device):
                output, loss = _judged(run, module, batch, check)
            tally.add(float(loss), batch.count, output, batch.target)
            judge.add(output, batch.target)
    if states is not None:
        run.restore_random(states)
    run.start_classes = run.start_classes or tally.classes
    return {**tally.over(world, "eval"), **judge.over(world, "eval")}


def _judged(run: Run, module: nn.Module, batch: Fed, check: Callable[[Any], None] | None) -> tuple[Any, Tensor]:
    """The outputs and the loss of one batch; a loss that runs the model may need it as it is in training."""
    try:
        return guarded(run.criterion, module, batch, batch.target, check)
    except Exception:
        if run.criterion.form != MODEL or run.loses_in_training:
            raise
        run.loses_in_training = True
        as_in_training(module)
        return guarded(run.criterion, module, batch, batch.target, check)


def check_classes(output: Any, target: Any, declared: int | None = None) -> None:
    """Refuse labels that the model has no output for (on CUDA they would be an assertion in a kernel).

    Raises:
        TrainingError: such a label, or fewer outputs than the classes that the data declares.
    """
    if not is_classification(output, target) or not target.numel():
        return
    given, advice = output.shape[1], "build it for the classes of the data (for torchvision: --model-arg num_classes=N)"
    if declared is not None and given < declared:
        raise TrainingError(f"the model gives {counted(given, 'class', 'classes')}, the data has {declared}; {advice}")
    highest = int(target.max())
    if highest >= given:
        raise TrainingError(
            f"label {highest} is out of range: the model gives {counted(given, 'class', 'classes')}; {advice}"
        )


def _grouped(batches: Iterable[Any], size: int) -> Iterator[list[Any]]:
    group: list[Any] = []
    for batch in batches:
        group.append(batch)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def fed(item: Any, run: Run) -> Fed:
    """Read what a loader yields, on the run's device."""
    return read(item, run.criterion, run.world.device)


def read(item: Any, criterion: Criterion, device: torch.device) -> Fed:
    """Read what a loader yields; a loss that runs the model itself takes it as it is."""
    raw = _each(item, lambda value: value.to(device, non_blocking=True))
    if criterion.form == MODEL:
        return Fed(raw, None, _samples(raw))
    batch = read_batch(item).to(device)
    return Fed(raw if criterion.form == BATCH else None, batch, batch.samples)


def _samples(raw: Any) -> int:
    """How many samples a batch of any form holds: the length of its first tensor, or list."""
    if isinstance(raw, Tensor):
        return len(raw)
    values = list(raw.values()) if isinstance(raw, Mapping) else list(raw) if isinstance(raw, (tuple, list)) else []
    return next((len(value) for value in values if isinstance(value, (Tensor, list, tuple))), 1)


def _cut(count: int, value: Tensor) -> Tensor:
    return value[:count] if value.dim() else value


def _each(value: Any, function: Any) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: _each(item, function) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_each(item, function) for item in value))
    if isinstance(value, (tuple, list)):
        return type(value)(_each(item, function) for item in value)
    return value


def train_mode(module: nn.Module) -> None:
    try:
        module.train()
    except NotImplementedError:  # modules from torch.export refuse; their batch-norm stays as exported
        for part in module.modules():
            part.training = True
