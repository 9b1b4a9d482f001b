"""The job behind `compress search`: minutes in, a folder of files out that no other beats."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compress import state
from compress.errors import InputError, OutputError
from compress.locking import claimed
from compress.measures.opening import Measures, open_measures
from compress.pipeline.gates import Gates
from compress.pipeline.inputs import DataSource, ModelSource, Opened, Settings, open_inputs
from compress.pipeline.job import Job
from compress.pipeline.outputs import Output
from compress.pipeline.pipeline import source_key
from compress.pipeline.quantize import check_runs
from compress.pipeline.recipe import EvaluateOptions, Recipe, read_recipe
from compress.pipeline.rehearsal import rehearsed
from compress.pipeline.search.clock import Clock, words
from compress.pipeline.search.finish import close
from compress.pipeline.search.folder import SEARCH, Front
from compress.pipeline.search.limits import check_limits
from compress.pipeline.search.options import SearchOptions
from compress.pipeline.search.session import STOP_AT, Session, explore, open_session
from compress.pipeline.search.space import Space, space_of
from compress.pipeline.search.study import Study, check_installed
from compress.pipeline.search.workers import workers
from compress.pipeline.search.writing import recipe_text
from compress.reporting.report import Report
from compress.runtimes.onnxruntime import default_threads
from compress.taking import takes

PRODUCTS = 0.2  # share of the weights
KEY, SPACE = "fingerprint", "space"  # of the study


@takes()
def search(
    model: ModelSource | Any,
    data: DataSource | Any = None,
    *,
    output: Output | str | Path,
    options: SearchOptions | None = None,
    gates: Gates | None = None,
    metric: Any = None,
    task: str = "auto",
    ignore_label: int | None = None,
    settings: Settings | None = None,
) -> Report:
    """Try candidates for some minutes, and leave those that no other beats in a folder, each with its recipe.

    Candidates are drawn of {share of channels removed} × {kind of numbers} × {repairs} × {runtimes installed}, judged by
    their outputs on calibration samples, and the survivors measured: latency in turns, the test part once. The best
    within `gates` is also written as `model.onnx`; where none is, the report's `failed` says what the nearest misses.

    Raises:
        CompressError: one line for whatever cannot be used, too short a time and another model's folder included.
    """
    options, settings = options or SearchOptions(), settings or Settings()
    measures = open_measures(metric, task=task, ignore_label=ignore_label)
    settings = replace(settings, threads=settings.threads or threads_of(options))
    recipe = Recipe(
        model=ModelSource.of(model),
        data=DataSource.of(data),
        evaluate=evaluate_of(measures),
        gates=gates or Gates(),
        seed=settings.seed,
        threads=settings.threads,
    )
    return search_recipe(recipe, output=Output.of(output), options=options, measures=measures, settings=settings)


def search_recipe(
    recipe: Recipe, *, output: Output, options: SearchOptions, measures: Measures, settings: Settings
) -> Report:
    """The same, of a recipe that holds the model, the data, the measures and the limits."""
    check_installed()
    _check_workers(recipe, options)
    front = Front(output.path)
    front.check(output, resume=options.resume)
    clock = Clock.of(options.minutes)
    made = not output.path.exists()
    with claimed(output.path), state.threads(settings.threads):
        front.check(output, resume=options.resume)
        opened = open_inputs(recipe.model, recipe.data, settings)
        check_runs(opened)
        job = rehearsed(Job(opened, settings, output, recipe.gates, measures), models=4)
        try:
            session = _begun(recipe, job, options, front, clock)
        except BaseException:
            if made and not front.names():
                _forget(output.path)
            raise
        with _message_on_ctrl_c(front):
            with workers(session):
                tried = explore(session)
            return close(session, session.study.tried() or tried)


def join(folder: Path | str, *, minutes: float | None = None, settings: Settings | None = None) -> int:
    """Take part in a search that another process, on this machine or another with the same folder, has begun.

    Returns:
        How many candidates were tried by all, once the searching is over; the first process measures the survivors.

    Raises:
        InputError: no search goes on there.
    """
    check_installed()
    front, settings = Front(Path(folder)), settings or Settings()
    if not Study.exists(front.root) or not (front.root / SEARCH).is_file():
        raise InputError(f"{str(front.root)!r} holds no search to join; begin one with compress search MODEL -o FRONT")
    recipe = read_recipe(front.root / SEARCH)
    options = recipe.search or SearchOptions()
    settings = replace(settings, seed=recipe.seed, threads=settings.threads or recipe.threads)
    measures = recipe.evaluate.measures()
    with state.threads(settings.threads):
        study = Study(front.root, seed=settings.seed, sampler=options.sampler)
        clock = _joined_clock(front, study, minutes)
        opened = open_inputs(recipe.model, recipe.data, settings)
        job = Job(opened, settings, limits=recipe.gates, measures=measures)
        _check_same(study, recipe, opened, settings, front)
        space = Space.from_dict(study.get(SPACE))
        session = replace(open_session(recipe, job, options, front, clock, study, space), is_first=False)
        return len(explore(session))


def threads_of(options: SearchOptions) -> int:
    """Threads of each process: all that there are, shared among the processes."""
    there = default_threads() or torch.get_num_threads()
    return max(1, there // options.workers)


def evaluate_of(measures: Measures) -> EvaluateOptions:
    """Measures as a recipe names them."""
    signs = {"lower": "min:", "higher": "max:", "": ""}
    own = tuple(
        metric.spec if metric.spec.startswith(("min:", "max:")) else signs[metric.better] + metric.spec
        for metric in measures.metrics
    )
    named = own or measures.leading or None
    return EvaluateOptions(metric=named, task=measures.task, ignore_label=measures.ignore_label)


def _begun(recipe: Recipe, job: Job, options: SearchOptions, front: Front, clock: Clock) -> Session:
    """Everything that is made once, and the study with its first candidates, new or as it was left."""
    front.root.mkdir(parents=True, exist_ok=True)
    if not options.resume:
        front.clear()
    study = Study(front.root, seed=job.settings.seed, sampler=options.sampler)
    space = _space(job.opened)
    if options.resume:
        _check_same(study, recipe, job.opened, job.settings, front)
        space = Space.from_dict(study.get(SPACE))
        study.give_up_dead()
    else:
        study.set(KEY, source_key(recipe.model, recipe.data, job.opened, job.settings))
        study.set(SPACE, space.as_dict())
        if options.sampler == "tpe":
            study.enqueue(space.first())
        else:
            study.enqueue(space.first()[:1])
    front.write(SEARCH, recipe_text(replace(recipe, search=options)))
    session = open_session(recipe, job, options, front, clock, study, space)
    _check_time(session)
    check_limits(session)
    return session


def _space(opened: Opened) -> Space:
    return space_of(
        is_module=opened.loaded.kind != "onnx",
        calibrates=opened.calibration_samples is not None,
        products=_multiplies(opened.model),
    )


def _multiplies(model: Any) -> bool:
    """Whether a good part of the weights is in matrix products, which weight-only quantization stores in blocks."""
    if not isinstance(model, nn.Module):
        return any(node.op_type in ("MatMul", "Gemm") for node in model.graph)
    linear = sum(part.weight.numel() for part in model.modules() if isinstance(part, nn.Linear))
    return linear > PRODUCTS * sum(value.numel() for value in model.parameters())


def _check_same(study: Study, recipe: Recipe, opened: Opened, settings: Settings, front: Front) -> None:
    """Refuse a folder of another model's search.

    Raises:
        OutputError: the model, its weights, the data or the seed are not those that the search began with.
    """
    if study.get(KEY) != source_key(recipe.model, recipe.data, opened, settings):
        raise OutputError(
            f"{str(front.root)!r} holds the search of another model, other data or another seed; choose another -o"
        )


def _check_time(session: Session) -> None:
    """Refuse a time in which not one candidate could be made and measured.

    Raises:
        InputError: says how long it takes.
    """
    clock = session.clock
    opened_s = clock.elapsed
    one_s = 2 * opened_s + session.measuring_s([])
    if one_s > clock.total:
        raise InputError(
            f"{clock.total / 60:g} minutes are too short to try one candidate: opening took {words(opened_s)}, one "
            f"candidate and its measuring need as much again and more; give --minutes {one_s / 60 + 0.1:.1f} or more"
        )


def _check_workers(recipe: Recipe, options: SearchOptions) -> None:
    named = isinstance(recipe.model.spec, (str, Path)) and isinstance(recipe.data.spec, (str, Path, type(None)))
    if options.workers > 1 and not named:
        raise InputError(
            "several processes open the model and the data by name; give a path or a specification, or leave workers at 1"
        )


def _joined_clock(front: Front, study: Study, minutes: float | None) -> Clock:
    ends = Clock.of(minutes).ends if minutes is not None else float(study.get(STOP_AT) or 0.0)
    clock = Clock(Clock.of(1).began, ends)
    if clock.left <= 0 or float(study.get(STOP_AT) or 0.0) <= clock.began:
        raise InputError(
            f"the search in {str(front.root)!r} is over; go on with compress search MODEL --resume -o {front.root}"
        )
    return clock


@contextlib.contextmanager
def _message_on_ctrl_c(front: Front) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        found = len(front.names())
        raise KeyboardInterrupt(
            f"{found} file{'s' if found != 1 else ''} in {str(front.root)!r}, each with its recipe; --resume goes on"
        ) from None


def _forget(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
