"""Stages in their order: each cached, resumed, the result measured and delivered whole."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from compress import state
from compress.batches import resized_batch
from compress.counting import counted
from compress.errors import OutputError
from compress.evaluation.runners import open_runner
from compress.locking import claimed
from compress.measures.opening import Measures
from compress.onnx_files import save_onnx
from compress.pipeline.cache import FOLDER, StageCache, content_key, environment_key, fingerprint, paths_in
from compress.pipeline.closing import closing_report
from compress.pipeline.for_runtime import check_runtime, in_runtime, settled_runtime
from compress.pipeline.gates import Gates
from compress.pipeline.inputs import DataSource, ModelSource, Opened, Settings, open_inputs
from compress.pipeline.job import Delivery, Job, Timing
from compress.pipeline.outputs import Output, output_folder
from compress.pipeline.quantize import check_runs
from compress.pipeline.recipe import EvaluateOptions, Recipe
from compress.pipeline.rehearsal import rehearsed
from compress.pipeline.stages import Export, Finetune, Prune, Quantize, Stage, Work, duration
from compress.reporting.report import Report
from compress.runtimes.runtime import ALIASES, DEFAULT
from compress.steps import Step

TIMED_BATCH = 32  # of the forward pass that a plan's costs are worked out from


@dataclass(frozen=True)
class Planned:
    """One line of a plan: a stage, whether its result is there already, what it will cost otherwise."""

    stage: str
    options: str
    cached: bool
    cost: str


@dataclass(frozen=True)
class Pipeline:
    """Stages as values, in the order they run; the model and the data come with `run`.

    >>> Pipeline((Export(), Quantize())).names
    ('export', 'quantize')
    """

    stages: tuple[Stage, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(stage.name for stage in self.stages)

    def run(
        self,
        model: ModelSource | Any,
        data: DataSource | Any = None,
        *,
        output: Output | str | Path,
        resume: bool = False,
        gates: Gates | None = None,
        evaluate: EvaluateOptions | None = None,
        settings: Settings | None = None,
    ) -> Report:
        """Run the stages and leave the result with its reports in `output`.

        Finished stages are kept in a folder `.stages` there, by content, options and versions, and are not run again;
        with `resume` an interrupted run goes on where it stopped.

        Raises:
            CompressError: one line for whatever cannot be used.
        """
        settings, output, evaluate = settings or Settings(), Output.of(output), evaluate or EvaluateOptions()
        settings = _measured_by(settings, evaluate, self.stages)
        _check_place(output, resume=resume)
        with claimed(output.path), state.threads(settings.threads):
            _check_place(output, resume=resume)
            opened = open_inputs(model, data, settings)
            check_runs(opened)
            job = rehearsed(_job(opened, settings, output, gates, evaluate), models=3)
            for stage in self.stages:
                stage.rehearse(opened)
            cache = StageCache(output.path)
            cache.clean()
            start = start_key(ModelSource.of(model), DataSource.of(data), opened, settings)
            baseline = _baseline(opened, cache, start)
            work, floats = _run_stages(self.stages, job, cache, start)
            report = _deliver(job, work, floats, baseline, cache)
            cache.finished()
            return report

    def plan(
        self,
        model: ModelSource | Any,
        data: DataSource | Any = None,
        *,
        output: Path,
        gates: Gates | None = None,
        evaluate: EvaluateOptions | None = None,
        settings: Settings | None = None,
    ) -> list[Planned]:
        """Say what `run` would do and cost, from one timed forward pass; nothing is written.

        Metrics and limits are tried on the model as `run` would.
        """
        evaluate = evaluate or EvaluateOptions()
        settings = _measured_by(settings or Settings(), evaluate, self.stages)
        with state.threads(settings.threads):
            opened = open_inputs(model, data, settings)
            job = rehearsed(_job(opened, settings, Output.of(output), gates, evaluate), models=3)
            for stage in self.stages:
                stage.rehearse(opened)
            cache, found = StageCache(output), []
            key = start_key(ModelSource.of(model), DataSource.of(data), opened, settings)
            seconds = _seconds_per_sample(opened)
            for stage in self.stages:
                key = _stage_key(key, stage, job.measures)
                found.append(
                    Planned(
                        stage.name, _options(stage), cache.has(stage.name, key), stage.cost(start_of(opened), seconds)
                    )
                )
        tests = 0 if opened.test is None else len(opened.test.dataset)  # type: ignore[arg-type]  # a data set with a length
        rows = 2 + any(stage.name in ("prune", "finetune") for stage in self.stages)
        cost = f"about {duration(rows * tests * seconds + 20)}: {counted(rows, 'model')}, {counted(tests, 'sample')}"
        return [*found, Planned("evaluate", "", False, cost)]


def pipeline_of(recipe: Recipe) -> Pipeline:
    """The stages that a recipe asks for. An ONNX file has crossed the border already and is not exported."""
    stages: list[Stage] = []
    if recipe.prune is not None:
        # What a fine-tuning that follows would learn anyway is not healed first, unless it was asked for.
        healing_is_set = recipe.prune.heal is not None or recipe.prune.heal_steps is not None
        follows = recipe.finetune is not None and not healing_is_set and not recipe.prune.masks
        stages.append(Prune(replace(recipe.prune, heal=0.0) if follows else recipe.prune))
    if recipe.finetune is not None:
        stages.append(Finetune(recipe.finetune, distill=recipe.distill))
    if not str(recipe.model.spec).endswith(".onnx"):
        stages.append(Export())
    if recipe.quantize is not None:
        stages.append(Quantize(recipe.quantize))
    return Pipeline(tuple(stages))


def start_key(source: ModelSource, data: DataSource, opened: Opened, settings: Settings) -> str:
    """What every stage depends on: the model, its weights, the data, by content; seed, versions, threads."""
    return fingerprint(source_key(source, data, opened, settings), environment_key())


def source_key(source: ModelSource, data: DataSource, opened: Opened, settings: Settings) -> str:
    """The model, its weights, the data, by content, and the seed."""
    if isinstance(source.spec, (str, Path)):
        model: Any = [str(source.spec), source.weights, source.model_args, source.input_shape]
    else:
        model = [type(source.spec).__name__, _state_key(opened.model)]
    files = [*paths_in(source.spec), *paths_in(source.weights), *paths_in(data.spec), *paths_in(data.classes)]
    named = data if isinstance(data.spec, (str, Path, type(None))) else [data.spec.name, data.spec.sizes()]
    contents = [content_key(path) for path in files]
    return fingerprint(model, named, contents, settings.seed)


def _state_key(model: Any) -> str:
    import hashlib

    if not isinstance(model, nn.Module):
        import onnx_ir as ir

        return hashlib.sha256(ir.to_proto(model).SerializeToString(deterministic=True)).hexdigest()[:16]
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(dtype=_bytes_type()).numpy().tobytes())
    return digest.hexdigest()[:16]


def _bytes_type() -> Any:
    import torch

    return torch.uint8


def _check_place(output: Output, *, resume: bool) -> None:
    """A folder that holds nothing but stages is a killed run: it may be resumed, but not by accident."""
    path = output.path
    if resume or output.overwrite:
        replace(output, overwrite=True).check_folder()
        return
    if path.is_dir() and [item.name for item in path.iterdir()] == [FOLDER]:
        raise OutputError(
            f"{str(path)!r} holds an interrupted run; add --resume to go on, or --overwrite, or choose another -o"
        )
    output.check_folder()


def start_of(opened: Opened) -> Work:
    """The model as it came, before the first stage."""
    return Work(opened, opened.model)


def _run_stages(
    stages: Sequence[Stage], job: Job, cache: StageCache, key: str
) -> tuple[Work, tuple[nn.Module | None, Path | None]]:
    """Run or read back each stage; also return the trained module and its float file, where there are such."""
    work = replace(start_of(job.opened), measures=job.measures)
    module: nn.Module | None = None
    float_file: Path | None = None
    for stage in stages:
        key = _stage_key(key, stage, job.measures)
        work = work.after(finished_stage(stage, work, cache, key))
        if isinstance(work.model, nn.Module):
            module = work.model
        elif isinstance(stage, Export):
            float_file = cache.folder(stage.name, key) / "model.onnx"
    return work, (module, float_file)


def _stage_key(key: str, stage: Stage, measures: Measures) -> str:
    """What a stage's result depends on: the stages before it, its options, and where it trains, the figure that decides."""
    if not stage.trains or measures.asked is None:
        return fingerprint(key, stage)
    named = [measures.leading, *(str(metric.spec) for metric in measures.metrics)]
    return fingerprint(key, stage, named, [content_key(path) for name in named for path in paths_in(name)])


def finished_stage(
    stage: Stage, work: Work, cache: StageCache, key: str, *, run: Callable[[Stage, Work, Path], Step] | None = None
) -> Step:
    """A stage's step out of the cache; run (or by `run`, which gives the same) and kept where it is not there yet."""
    if cache.has(stage.name, key):
        return cache.step(stage.name, key, stage.restore(work, cache.folder(stage.name, key)))
    with state.seeded(work.opened.seed):
        working = cache.working(stage.name, key)
        step = stage.run(work, working) if run is None else run(stage, work, working)
    half = cache.half()
    stage.save(step, half)
    folder = cache.finish(half, stage.name, key, step)
    # Read back: a run that is not interrupted goes on from the very bytes that a resumed one would.
    return replace(step, model=stage.restore(work, folder))


def _baseline(opened: Opened, cache: StageCache, key: str) -> Path:
    """The float model as it came, as an ONNX file: what everything is measured beside."""
    path = opened.loaded.path
    if opened.loaded.kind == "onnx" and path is not None:
        return path
    if not cache.has("baseline", key):
        from compress.graph.exporting import to_graph

        half = cache.half()
        save_onnx(to_graph(opened.model, opened.inputs), half / "model.onnx")
        cache.finish(half, "baseline", key)
    return cache.folder("baseline", key) / "model.onnx"


def _measured_by(settings: Settings, evaluate: EvaluateOptions, stages: Sequence[Stage]) -> Settings:
    """The settings with the runtime and the precision in which the result is measured: what is asked for, else what it is made for.

    Raises:
        InputError: the runtime is not installed, or offers no such precision here.
    """
    made_for = [stage.options.runtime for stage in stages if isinstance(stage, (Prune, Quantize))]
    runtime = evaluate.runtime or next((name for name in reversed(made_for) if name != DEFAULT), DEFAULT)
    precision = settings.float_precision if evaluate.float_precision == "float32" else evaluate.float_precision
    check_runtime(runtime, precision)
    return replace(settings, runtime=ALIASES.get(runtime, runtime), float_precision=precision)


def _job(opened: Opened, settings: Settings, output: Output, gates: Gates | None, evaluate: EvaluateOptions) -> Job:
    timing = Timing(evaluate.rounds, evaluate.batch)
    return Job(opened, settings, output, gates or Gates(), evaluate.measures(), timing)


def _deliver(
    job: Job, work: Work, floats: tuple[nn.Module | None, Path | None], baseline: Path, cache: StageCache
) -> Report:
    opened, (module, float_file) = work.opened, floats
    names = [step.name for step in work.steps]
    assert job.output is not None
    with output_folder(replace(job.output, overwrite=True), scratch=cache.root) as folder:
        shipped = folder.save_graph(work.model)
        refused = folder.save_module(module, opened.inputs) if module is not None else ()
        steps = [*work.steps, *([Step("save", module, refused)] if refused else [])]
        quantized = _has(names, "quantize")
        targets: dict[str, Any] = {f"{opened.name} float32": baseline}
        if module is not None and float_file is not None and quantized:
            targets[_name(names, "float32")] = float_file
        final = _name(names, "int8" if quantized else "float32") if names else "as it came"
        targets[final] = shipped
        notes: tuple[str, ...] = ()
        if job.settings.runtime != DEFAULT:
            asked, threads = job.settings.runtime, opened.threads
            runtime, notes = settled_runtime(asked, shipped, opened, threads, what="the result")
            targets, crashes = in_runtime(targets, runtime, [final], job.settings.float_precision)
            notes = (*notes, *crashes)
        made = Delivery(
            targets,
            f"{opened.name}: {', '.join(names)}",
            steps=steps,
            notes=notes,
            files=folder.listed(),
            shipped=shipped,
            source=float_file,
            gated=[final],
        )
        return folder.save_report(closing_report(job, made))


def _name(names: Sequence[str], kind: str) -> str:
    words = [word for word, stage in (("pruned", "prune"), ("finetuned", "finetune")) if _has(names, stage)]
    return " + ".join([*words, kind]) if words or kind == "int8" else f"exported {kind}"


def _has(names: Sequence[str], stage: str) -> bool:
    return any(name.startswith(stage) for name in names)


def _options(stage: Stage) -> str:
    options = getattr(stage, "options", None)
    return "" if options is None else changed(options)


def changed(options: Any) -> str:
    """The options that are not as they are by default."""
    default = type(options)()
    changed = {key: value for key, value in vars(options).items() if value != getattr(default, key)}
    return ", ".join(f"{key}={value}" for key, value in changed.items()) or "defaults"


def _seconds_per_sample(opened: Opened) -> float:
    runner = open_runner(opened.model)
    inputs = resized_batch(opened.inputs, TIMED_BATCH)
    runner(inputs)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        runner(inputs)
        times.append(time.perf_counter() - start)
    return min(times) / TIMED_BATCH
