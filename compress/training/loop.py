"""`fit`: train a copy of a module, epoch by epoch."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from compress.batches import read_batch
from compress.errors import TrainingError
from compress.state import copied
from compress.training.averaging import Average
from compress.training.batchnorm import Counted, synchronized
from compress.training.defaults import settled
from compress.training.distillation import Objective, distilled
from compress.training.distributed import World, joined
from compress.training.early_stopping import EarlyStopping
from compress.training.epoch import evaluate_epoch, train_epoch
from compress.training.history import Record, plot_history, write_history
from compress.training.loaders import Batches, open_batches
from compress.training.losses import Loss, make_loss
from compress.training.mixup import on_mixed
from compress.training.optimizers import make_optimizer
from compress.training.options import TrainOptions
from compress.training.precision import make_scaler
from compress.training.recomputation import recomputed
from compress.training.run import Run
from compress.training.schedulers import Schedule
from compress.training.seeds import reproducible
from compress.training.tensorboard import Board

Callback = Callable[[Run], None]


@dataclass(frozen=True)
class FitResult:
    """A trained copy of the module, and the figures of every epoch.

    `module` holds the weights of the best epoch where `patience` was given, else of the last; averaged ones
    where `ema_decay` was. `watched` names the value that decides which epoch is best.
    """

    module: nn.Module
    history: tuple[Record, ...]
    watched: str
    best_epoch: int | None
    best_score: float | None
    steps: int
    stopped_early: bool = False
    notes: tuple[str, ...] = ()

    @property
    def final(self) -> Record:
        return self.history[-1]


def fit(
    module: nn.Module,
    data: Any,
    options: TrainOptions | None = None,
    *,
    teacher: nn.Module | None = None,
    loss: Loss | None = None,
    output: str | Path | None = None,
    resume: bool = False,
    tensorboard: bool = False,
    device: str | torch.device = "auto",
    before_epoch: Sequence[Callback] = (),
    after_step: Sequence[Callback] = (),
    after_epoch: Sequence[Callback] = (),
) -> FitResult:
    """Train a copy of `module` on `data`; the module handed in is not touched.

    Under a launcher (torchrun, `compress train --nproc`) every process calls this, and all return the same weights.

    Args:
        data: has `.train`, `.test` and `.loader(part, …)` as `compress.open_data` returns it, or is a pair of loaders
            (training, evaluation or None) whose batches `compress.batches.read_batch` reads. Batch size, order and
            workers of a pair are its own.
        teacher: distil from this model, see `TrainOptions.distill_weight`.
        loss: a function (output, target) → mean over the samples, instead of `options.loss`.
        output: a folder for checkpoints, `history.json`, the learning curves, TensorBoard events.
        resume: continue from `output/checkpoints/last.pt` where there is one.
        before_epoch, after_step, after_epoch: called with the `Run`, whose `epoch` and `step` count what is finished.
            What they change in `run.module` (masks after each step, frozen observers) is part of the training.

    Raises:
        InputError: options or data that cannot be used.
        TrainingError: the run cannot start, or a loss is not finite.
        OutputError: a checkpoint cannot be written.
    """
    options, told = settled(options or TrainOptions(), module)
    chosen = loss or make_loss(options)  # refuse an unknown name before anything is started
    folder = Path(output) if output is not None else None
    if resume and folder is None:
        raise TrainingError("resume needs the output folder of the run that it continues")
    home = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    with (
        joined(device) as world,
        reproducible(options.seed + world.rank, deterministic=options.deterministic),
        contextlib.ExitStack() as stack,
    ):
        run = _start(module, data, options, loss, teacher, world, stack)
        run.folder, run.after_step = folder, after_step
        notes = (*told, *(_resume(run) if resume else ()))
        board = Board(folder / "tensorboard") if tensorboard and folder and world.leads else None
        if board and run.epoch == 0:
            board.graph(run.module, _example(run))
        stopped = _epochs(run, chosen, board, before_epoch, after_epoch)
        if run.best_model is not None:
            run.module.load_state_dict(run.best_model)
        elif run.average:
            run.module.load_state_dict(run.average.values)
        if board:
            board.close(options, run.history[-1])
        stopping, history = run.stopping, tuple(run.history)
    trained = run.module.to(home)
    best = stopping.best_epoch + 1 if stopping.best_epoch is not None else None
    return FitResult(trained, history, run.watched, best, stopping.best, run.step, stopped, notes)


def _start(
    module: nn.Module,
    data: Any,
    options: TrainOptions,
    loss: Loss | None,
    teacher: nn.Module | None,
    world: World,
    stack: contextlib.ExitStack,
) -> Run:
    chosen = loss or make_loss(options)
    batches = open_batches(data, options, world)
    if batches.steps is None and options.warmup_epochs:
        raise TrainingError("warmup_epochs needs a training loader that knows its length")
    trained = copied(module).to(world.device)
    watched = _watched(batches, options, loss)
    rising = watched.endswith("top1")
    stack.enter_context(recomputed(trained, options.recompute))
    chosen = on_mixed(chosen) if options.mixup else chosen
    objective: Objective = lambda batch, output: chosen(output, batch.target)  # noqa: E731
    if teacher is not None:
        objective = stack.enter_context(distilled(trained, teacher, chosen, options))
    counted = Counted()
    if options.sync_batchnorm and world.size > 1:
        stack.enter_context(synchronized(trained, counted))
    optimizer = make_optimizer(trained, options)
    return Run(
        module=trained,
        wrapped=_wrap(trained, options, world),
        options=options,
        world=world,
        batches=batches,
        objective=objective,
        optimizer=optimizer,
        schedule=Schedule(optimizer, options, batches.steps, rising=rising),
        scaler=make_scaler(options, world.device),
        watched=watched,
        stopping=EarlyStopping(patience=options.patience, min_delta=options.min_delta, rising=rising),
        average=Average(trained, options.ema_decay) if options.ema_decay else None,
        counted=counted,
    )


def _watched(batches: Batches, options: TrainOptions, loss: Loss | None) -> str:
    """The figure that decides which epoch is best, such as `eval/top1`."""
    automatic = "top1" if loss is None and options.loss == "cross_entropy" else "loss"
    part = "eval" if batches.evaluation is not None else "train"
    return f"{part}/{automatic if options.monitor == 'auto' else options.monitor}"


def _wrap(module: nn.Module, options: TrainOptions, world: World) -> nn.Module:
    if world.size == 1:
        return module
    ids = [world.device.index] if world.device.type == "cuda" else None
    return DistributedDataParallel(module, device_ids=ids, find_unused_parameters=options.find_unused_parameters)


def _resume(run: Run) -> tuple[str, ...]:
    path = run.last_path
    assert path is not None
    if not path.exists():
        return (f"no checkpoint in {str(path.parent)!r} yet: started from the beginning",)
    run.resume(path)
    return (f"resumed after epoch {run.epoch} from {str(path)!r}",)


def _example(run: Run) -> tuple[Tensor, ...]:
    with torch.random.fork_rng():
        batch = read_batch(next(iter(run.batches.open(0))))
    return batch.part(0, 1).to(run.world.device).in_order(run.module)


def _epochs(
    run: Run, loss: Loss, board: Board | None, before_epoch: Sequence[Callback], after_epoch: Sequence[Callback]
) -> bool:
    """Run the epochs that are left; return whether early stopping ended them."""
    while run.epoch < run.options.epochs and not run.stopping.exhausted:
        started = time.perf_counter()
        _call(before_epoch, run)
        record: Record = {"epoch": run.epoch + 1, **train_epoch(run), "lr": run.schedule.lr}
        trained = time.perf_counter() - started
        _share_statistics(run)
        if run.batches.evaluation is not None:
            with run.judged() as judged:
                record |= evaluate_epoch(judged, run.batches.evaluation, loss, run.world, run.options)
        best = _finish_epoch(run, record | {"step": run.step, "seconds": round(trained, 3)})
        _call(after_epoch, run)
        done = run.epoch == run.options.epochs or run.stopping.exhausted
        if best or done or run.epoch % run.options.checkpoint_every == 0:
            run.save(best=best)
        _publish(run, board)
    return run.stopping.exhausted and run.epoch < run.options.epochs


def _share_statistics(run: Run) -> None:
    """Running statistics differ between processes unless batch-norm is synchronized: those of the first count."""
    buffers = dict(run.module.named_buffers())
    run.world.share(buffers.values())
    if run.average:
        run.world.share(value for name, value in run.average.values.items() if name in buffers)


def _finish_epoch(run: Run, record: Record) -> bool:
    """Take the figures of an epoch; return whether it is the best so far."""
    if run.watched not in record:
        raise TrainingError(
            f"monitor {run.options.monitor!r} asks for {run.watched}, which this model and data do not give; use loss"
        )
    run.history.append(record)
    score = record[run.watched]
    run.schedule.after_epoch(run.epoch, score)
    best = run.stopping.update(run.epoch, score)
    if best and run.options.patience is not None:
        run.best_model = run.weights()
    run.epoch += 1
    return best


def _publish(run: Run, board: Board | None) -> None:
    if board:
        board.epoch(run.history[-1])
    if run.folder and run.world.leads:
        write_history(run.history, run.folder / "history.json")
        if run.epoch >= run.options.epochs or run.stopping.exhausted:
            plot_history(run.history, run.folder / "curves.png")


def _call(callbacks: Sequence[Callback], run: Run) -> None:
    for callback in callbacks:
        callback(run)
