"""`fit`: train a copy of a module, epoch by epoch."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from compress.batches import read_batch
from compress.counting import counted
from compress.errors import InputError, TrainingError
from compress.given import model_of
from compress.measures.opening import Measures, open_measures
from compress.state import copied
from compress.taking import takes
from compress.training.averaging import Average
from compress.training.best_weights import chosen_weights, comparable, decide_watched, judge_start
from compress.training.criterion import Criterion, make_criterion, with_mixed_targets
from compress.training.defaults import settled
from compress.training.distillation import Objective, distilled
from compress.training.distributed import World, joined
from compress.training.diverging import diverged
from compress.training.early_stopping import EarlyStopping
from compress.training.epoch import DivergedError, evaluate_epoch, train_epoch
from compress.training.history import Record, plot_history, write_history
from compress.training.loaders import as_train_data, open_batches
from compress.training.losses import Loss
from compress.training.metrics import Tally
from compress.training.mixup import on_mixed
from compress.training.optimizers import make_optimizer
from compress.training.options import AUTO, TrainOptions
from compress.training.precision import make_scaler
from compress.training.range_test import find_rate, saved_rate
from compress.training.recomputation import recomputed
from compress.training.run_state import Run
from compress.training.schedulers import Schedule
from compress.training.seeds import reproducible
from compress.training.sync_batchnorm import Counted, synchronized
from compress.training.tensorboard import Board
from compress.training.within import Within
from compress.training.zeros import Zeros

Callback = Callable[[Run], None]


@dataclass(frozen=True)
class FitResult:
    """A trained copy of the module, and the figures of every epoch.

    `module` holds the weights of the best epoch, 0 being the network as it came (`keep="last"`: of the last one); averaged
    ones where `ema_decay` was. `watched` names the value that decides which epoch is best, `start` the figures before
    the first. `options` are those of the run, with what was chosen for `auto`.
    """

    module: nn.Module
    history: tuple[Record, ...]
    watched: str
    best_epoch: int | None
    best_score: float | None
    steps: int
    stopped_early: bool = False
    notes: tuple[str, ...] = ()
    start: Record | None = None
    options: TrainOptions | None = None
    kept_epoch: int = 0

    @property
    def final(self) -> Record:
        """The figures of the weights that are returned."""
        return self.history[self.kept_epoch - 1] if self.kept_epoch else (self.start or {})


@dataclass(frozen=True)
class Plan:
    """What a run is made of, besides the module and its data."""

    options: TrainOptions
    criterion: Criterion
    teacher: nn.Module | None = None
    measures: Measures | None = None
    folder: Path | None = None


@takes()
def fit(
    module: nn.Module,
    data: Any,
    options: TrainOptions | Mapping[str, Any] | None = None,
    *,
    teacher: nn.Module | None = None,
    loss: Loss | None = None,
    metric: Any = None,
    output: str | Path | None = None,
    resume: bool = False,
    tensorboard: bool = False,
    device: str | torch.device = "auto",
    before_epoch: Sequence[Callback] = (),
    after_step: Sequence[Callback] = (),
    after_epoch: Sequence[Callback] = (),
) -> FitResult:
    """Train a copy of `module` on `data`; the module handed in is not touched.

    What is returned is never worse than what was given, by the monitored figure: the network is judged before the first
    epoch too, and the best is kept. Under a launcher (torchrun, `compress train --nproc`) every process calls this, and
    all return the same weights.

    Args:
        data: has `.train`, `.test` and `.loader(part, …)` as `compress.open_data` returns it, or is a pair of loaders
            (training, evaluation or None) whose batches `compress.batches.read_batch` reads. Batch size, order and
            workers of a pair are its own.
        teacher: distil from this model, see `TrainOptions.distill_weight`.
        loss: a function (outputs, target) → mean over the samples, or of another form that `criterion.py` lists, instead
            of `options.loss`.
        metric: a figure of your own, see `compress.measures.own.open_metrics`; the first decides which epoch is best.
        output: a folder for checkpoints, `history.json`, the learning curves, TensorBoard events.
        resume: continue from `output/checkpoints/last.pt` where there is one.
        before_epoch, after_step, after_epoch: called with the `Run`, whose `epoch` and `step` count what is finished.
            What they change in `run.module` (masks after each step, frozen observers) is part of the training.

    Raises:
        InputError: options or data that cannot be used.
        TrainingError: the run cannot start, or a loss is not finite (fine-tuning stops instead, and keeps the best).
        OutputError: a checkpoint cannot be written.
    """
    module, data = model_of(module), as_train_data(data)
    if not isinstance(module, nn.Module):
        raise InputError(f"training takes a torch.nn.Module, not a {type(module).__name__}")
    if isinstance(options, Mapping):
        options = TrainOptions.from_mapping(options)
    options, defaults_notes = settled(options or TrainOptions(), module)
    folder = Path(output) if output is not None else None
    if resume and folder is None:
        raise TrainingError("resume needs the output folder of the run that it continues")
    measures = open_measures(metric) if metric is not None else None
    plan = Plan(options, make_criterion(options, loss), teacher, measures, folder)
    home = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    with (
        joined(device) as world,
        reproducible(options.seed + world.rank, deterministic=options.deterministic),
        contextlib.ExitStack() as stack,
    ):
        if options.lr == AUTO:
            plan, found = _with_rate(module, data, plan, world, resume=resume)
            defaults_notes = (*defaults_notes, found)
        run = start_run(module, data, plan, world, stack)
        run.after_step = after_step
        notes = (*defaults_notes, *run.zeros.note, *(_resume(run) if resume else ()))
        board = Board(folder / "tensorboard") if tensorboard and folder and world.leads else None
        if board and run.epoch == 0:
            board.graph(run.module, _example(run))
        if run.step == 0:
            judge_start(run)
        stopped = _epochs(run, board, before_epoch, after_epoch)
        chosen = chosen_weights(run, module)
        if board:
            board.close(run.options, run.history[-1] if run.history else run.start or {})
        history = tuple(run.history)
    return FitResult(
        module=run.module.to(home),
        history=history,
        watched=run.watched,
        best_epoch=chosen.best,
        best_score=chosen.score,
        kept_epoch=chosen.kept,
        steps=run.step,
        stopped_early=stopped,
        notes=(*notes, *chosen.notes),
        start=run.start,
        options=run.options,
    )


def _with_rate(module: nn.Module, data: Any, plan: Plan, world: World, *, resume: bool) -> tuple[Plan, str]:
    """The plan with a learning rate in place of `auto`: that of the run which goes on, else found by a range test."""
    rate = saved_rate(plan.folder) if resume else None
    words = f"learning rate {rate:g}, as the run that goes on has it" if rate is not None else ""
    if rate is None:
        with contextlib.ExitStack() as stack:  # hooks of the trial go with it
            trial = start_run(module, data, _constant(plan), world, stack)
            rate, words = find_rate(trial)
    return _at_rate(plan, rate), words


def _at_rate(plan: Plan, rate: float) -> Plan:
    return replace(plan, options=plan.options.settled(lr=rate))


def _constant(plan: Plan) -> Plan:
    """The plan of a run whose learning rate the range test alone sets."""
    still = {"lr": 1e-3, "scheduler": "none", "scheduler_args": {}, "warmup_epochs": 0}
    return replace(plan, options=plan.options.settled(**still), folder=None)


def start_run(module: nn.Module, data: Any, plan: Plan, world: World, stack: contextlib.ExitStack) -> Run:
    """Make everything that a run needs; what it hooks into the copy of the module is undone when `stack` closes."""
    options, criterion = plan.options, plan.criterion
    batches = open_batches(data, options, world)
    if batches.steps is None and options.warmup_epochs:
        raise TrainingError("warmup_epochs needs a training loader that knows its length")
    trained = copied(module).to(world.device)
    watched, rising = decide_watched(batches, options, criterion, plan.measures)
    stack.enter_context(recomputed(trained, options.recompute))
    criterion = with_mixed_targets(criterion, on_mixed) if options.mixup else criterion
    objective: Objective = criterion
    if plan.teacher is not None:
        objective = stack.enter_context(distilled(trained, plan.teacher, criterion, options))
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
        criterion=criterion,
        objective=objective,
        optimizer=optimizer,
        schedule=Schedule(optimizer, options, batches.steps, rising=rising),
        scaler=make_scaler(options, world.device),
        watched=watched,
        stopping=EarlyStopping(patience=options.patience, min_delta=options.min_delta, rising=rising),
        average=Average(trained, options.ema_decay) if options.ema_decay else None,
        counted=counted,
        zeros=Zeros(trained, options),
        within=Within(Tally(criterion)),
        measures=plan.measures,
        folder=plan.folder,
    )


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
    planned = run.resume(path)
    within = f" and {counted(run.within.groups, 'step')}" if run.resumed else ""
    words = [f"resumed after epoch {run.epoch}{within} from {str(path)!r}"]
    if planned != run.options.epochs:
        words.append(
            f"that run was planned for {counted(planned, 'epoch')}: the learning rate goes on as for {run.options.epochs}"
        )
    return tuple(words)


def _example(run: Run) -> tuple[Tensor, ...]:
    with torch.random.fork_rng():
        batch = read_batch(next(iter(run.batches.open(0))))
    return batch.part(0, 1).to(run.world.device).in_order(run.module)


def _epochs(run: Run, board: Board | None, before_epoch: Sequence[Callback], after_epoch: Sequence[Callback]) -> bool:
    """Run the epochs that are left; return whether early stopping ended them."""
    while run.epoch < run.options.epochs and not run.stopping.exhausted:
        started = time.perf_counter()
        _call(before_epoch, run)
        try:
            record: Record = {"epoch": run.epoch + 1, **train_epoch(run), "lr": run.schedule.lr}
        except DivergedError as error:
            if not run.options.finetune or run.start is None:
                raise
            run.stopped = f"training stopped: {error}"
            break
        trained = time.perf_counter() - started
        _share_statistics(run)
        if run.batches.evaluation is not None:
            with run.judged() as judged:
                record |= evaluate_epoch(run, judged)
        best = _finish_epoch(run, record | {"step": run.step, "seconds": round(trained, 3)})
        _call(after_epoch, run)
        run.stopped = diverged(run, run.within.losses)
        done = run.epoch == run.options.epochs or run.stopping.exhausted or bool(run.stopped)
        if best or done or run.epoch % run.options.checkpoint_every == 0:
            run.save(best=best)
        _publish(run, board)
        if run.stopped:
            break
    if (
        run.folder and run.world.leads and run.history
    ):  # here: a run may have been killed between its last checkpoint and these
        write_history(run.history, run.folder / "history.json")
        plot_history(run.history, run.folder / "curves.png")
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
    best = comparable(run.module) and run.stopping.update(run.epoch, score)
    if best and run.options.keep == "best":
        run.best_model = run.weights()
    run.epoch += 1
    return best


def _publish(run: Run, board: Board | None) -> None:
    if board:
        board.epoch(run.history[-1])
    if run.folder and run.world.leads:
        write_history(run.history, run.folder / "history.json")


def _call(callbacks: Sequence[Callback], run: Run) -> None:
    for callback in callbacks:
        callback(run)
