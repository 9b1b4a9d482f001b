"""One pass over the training data, and one over the data it is judged on."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from compress.batches import Batch, call, read_batch
from compress.errors import TrainingError
from compress.progress import track
from compress.state import evaluating
from compress.training.distributed import World
from compress.training.losses import Loss
from compress.training.metrics import Tally, is_classification
from compress.training.mixup import mixed
from compress.training.optimizers import clip
from compress.training.precision import autocast

if TYPE_CHECKING:
    from compress.training.run import Run


def train_epoch(run: Run) -> dict[str, float]:
    """Train once over the data; return `train/loss` and, for classes, `train/top1` of all processes.

    The samples behind one optimizer step are divided into processes × `accumulate` forward passes. Each
    loss is a mean over its own samples, so it is weighted by their share of the step's: the sum is the mean
    over the large batch, for the last, incomplete group too.

    Raises:
        TrainingError: a loss that is not finite, or a label that the model has no class for.
    """
    _train_mode(run.module)
    tally = Tally()
    left = run.batches.sampler.counted if run.batches.sampler else None
    description = f"epoch {run.epoch + 1}/{run.options.epochs}"
    loader = run.batches.open(run.epoch)
    bar = track(loader, description) if run.world.leads else None
    for group in _grouped(loader if bar is None else bar, run.options.accumulate):
        batches = [read_batch(item).to(run.world.device) for item in group]
        counts: list[int] = []
        for index, batch in enumerate(batches):
            count = batch.samples
            if left is not None:  # samples past `left` only pad, see EpochSampler
                if 0 < left < count:
                    batches[index] = batch.part(0, left)
                count = min(count, left)
                left -= count
            counts.append(count)
        _step(run, batches, counts, tally)
        if bar is not None and not bar.disable:
            bar.set_postfix(tally.postfix(), refresh=False)
    if tally.count == 0 and run.world.size == 1:
        raise TrainingError("the training loader gave no batch")
    return tally.over(run.world, "train")


def _step(run: Run, batches: list[Batch], counts: list[int], tally: Tally) -> None:
    """One optimizer step from one group of batches."""
    run.schedule.before_step()
    total = _total(run.world, sum(counts))
    for index, (batch, count) in enumerate(zip(batches, counts)):
        run.counted.now = count > 0
        share = count * run.world.size / total  # times size: DDP divides by it
        with contextlib.nullcontext() if index == len(batches) - 1 else run.unsynchronized():
            _backward(run, batch, count, share, tally, index)
    if run.options.clip_norm is not None or run.options.clip_value is not None:
        run.scaler.unscale_(run.optimizer)
        clip(run.module, run.options)
    run.scaler.step(run.optimizer)
    run.scaler.update()
    run.optimizer.zero_grad(set_to_none=True)
    run.step += 1
    for callback in run.after_step:
        callback(run)
    if run.average is not None:
        run.average.update(run.module)


def _backward(run: Run, batch: Batch, count: int, share: float | Tensor, tally: Tally, index: int) -> None:
    target = batch.target
    if run.options.mixup:
        batch = mixed(batch, run.options.mixup, (run.options.seed, run.step, run.world.rank, index))
    with autocast(run.options, run.world.device):
        output = _forward(run, batch)
        if run.step == 0:
            check_classes(output, target, run.batches.classes)
        loss = _guarded(run.objective, batch, output)
    value = float(loss.detach())
    if not math.isfinite(value):
        raise TrainingError(
            f"the loss is {value} at step {run.step + 1} (epoch {run.epoch + 1}); lower lr, or set clip_norm{run.kept()}"
        )
    run.scaler.scale(loss * share if isinstance(share, Tensor) or share != 1.0 else loss).backward()
    if count:
        tally.add(value, count, output, target)


def _forward(run: Run, batch: Batch) -> Any:
    try:
        return call(run.wrapped, batch)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise TrainingError(
            f"a batch of {batch.samples} sample is too small for batch-norm (step {run.step + 1}); "
            "use another batch_size, or drop_last"
        ) from error


def _total(world: World, count: int) -> float | Tensor:
    if world.size == 1:
        return float(count)
    total = torch.tensor(float(count), device=world.device)
    torch.distributed.all_reduce(total)
    return total  # stays on the device: reading it would wait for it


def evaluate_epoch(
    module: nn.Module, batches: Iterable[Any], loss: Loss, world: World, options: Any, description: str = "evaluating"
) -> dict[str, float]:
    """Return `eval/loss` and, for classes, `eval/top1`; every sample of every process counted once."""
    tally = Tally()
    with evaluating(module):
        for item in track(batches, description) if world.leads else batches:
            batch = read_batch(item).to(world.device)
            with autocast(options, world.device):
                output = call(module, batch)
                value = float(_guarded(lambda batch, output: loss(output, batch.target), batch, output))
            tally.add(value, batch.samples, output, batch.target)
    return tally.over(world, "eval")


def check_classes(output: Any, target: Any, declared: int | None = None) -> None:
    """Refuse labels that the model has no output for (on CUDA they would be an assertion in a kernel).

    Raises:
        TrainingError: such a label, or fewer outputs than the classes that the data declares.
    """
    if not is_classification(output, target) or not target.numel():
        return
    given, advice = output.shape[1], "build it for the classes of the data (for torchvision: --model-arg num_classes=N)"
    if declared is not None and given < declared:
        raise TrainingError(f"the model gives {given} classes, the data has {declared}; {advice}")
    highest = int(target.max())
    if highest >= given:
        raise TrainingError(f"label {highest} is out of range: the model gives {given} classes; {advice}")


def _guarded(objective: Any, batch: Batch, output: Any) -> Tensor:
    target = batch.target
    try:
        loss = objective(batch, output)
    except IndexError as error:
        check_classes(output, target)
        raise TrainingError(f"the loss refuses a label: {str(error).splitlines()[0]}") from error
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        if isinstance(output, Tensor) and isinstance(target, Tensor):
            raise TrainingError(
                f"the loss does not take an output of {tuple(output.shape)} with a target of {tuple(target.shape)} "
                f"{str(target.dtype).removeprefix('torch.')}: {str(error).splitlines()[0]}"
            ) from error
        raise
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise TrainingError(
            f"the loss must return one number as a tensor, got {getattr(loss, 'shape', type(loss).__name__)}"
        )
    return loss.reshape(())


def _grouped(batches: Iterable[Any], size: int) -> Iterator[list[Any]]:
    group: list[Any] = []
    for batch in batches:
        group.append(batch)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def _train_mode(module: nn.Module) -> None:
    try:
        module.train()
    except NotImplementedError:  # modules from torch.export refuse; their batch-norm stays as exported
        for part in module.modules():
            part.training = True
