"""The job behind `compress train`, `compress finetune`: a trained model with its files and figures."""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

from torch import nn

from compress import state
from compress.batches import Batch
from compress.counting import counted
from compress.errors import CompressError, InputError, OutputError
from compress.graph.exporting import export, to_graph
from compress.locking import claimed
from compress.measures.opening import open_measures
from compress.onnx_files import save_onnx
from compress.pipeline.closing import closing_report
from compress.pipeline.inputs import DataSource, ModelSource, Opened, Settings, open_inputs, open_source
from compress.pipeline.job import Delivery, Job
from compress.pipeline.outputs import Output, OutputFolder, output_folder
from compress.reporting.report import Report
from compress.scratch import scratch_folder
from compress.steps import Change, Step
from compress.taking import takes
from compress.training.distributed import asked_for
from compress.training.launching import LAUNCHED, check_nproc, launch
from compress.training.loaders import share_of_batch
from compress.training.loop import FitResult, fit
from compress.training.options import FinetuneOptions, TrainOptions
from compress.training.weight_files import save_weights

# What a run keeps in the output folder while it trains; removed when another run overwrites it.
RUN_FILES = ("checkpoints", "tensorboard", "history.json", "curves.png")
UNFINISHED = ".unfinished"
WEIGHTS_FORMATS = ("pt", "safetensors")


@dataclass(frozen=True)
class TrainJob:
    """Everything that a training process must know; it travels to the processes of `nproc`."""

    model: ModelSource
    data: DataSource
    output: Output
    options: TrainOptions
    teacher: ModelSource | None
    resume: bool
    tensorboard: bool
    device: str
    weights_format: str
    finetune: bool
    settings: Settings
    folder: Path | None = None  # where checkpoints and curves are kept until the result is whole
    metric: Any = None


class RunChoices(TypedDict, total=False):
    """What a run needs beside its options."""

    resume: bool
    tensorboard: bool
    nproc: int
    device: str
    weights_format: str
    metric: Any


class TrainChoices(RunChoices, total=False):
    """The keywords of `train` that `finetune` takes as well."""

    options: TrainOptions | None
    teacher: ModelSource | Any | None
    settings: Settings | None


@takes()
def train(
    model: ModelSource | Any,
    data: DataSource | Any,
    *,
    output: Output | str | Path,
    options: TrainOptions | None = None,
    teacher: ModelSource | Any | None = None,
    resume: bool = False,
    tensorboard: bool = False,
    nproc: int = 1,
    device: str = "auto",
    weights_format: str = "pt",
    finetune: bool = False,
    metric: Any = None,
    settings: Settings | None = None,
) -> Report | None:
    """Train a model and leave `weights.pt`, `model.pt2`, `model.onnx`, reports and checkpoints in a folder.

    Under `torchrun` every process calls this; the first one writes and returns the report, the others None.

    Args:
        teacher: distil from this model; its weights are usually those of the unpruned float model.
        resume: continue from the folder's last checkpoint.
        nproc: processes on this machine that train together.
        finetune: start from weights, and report the model as it was beside the result.
        metric: a figure of your own (see `open_measures`): the first decides which epoch is best, and stands in the table.

    Raises:
        CompressError: one line for whatever cannot be used, or for what stopped the run.
    """
    options, settings = options or (FinetuneOptions() if finetune else TrainOptions()), settings or Settings()
    if weights_format not in WEIGHTS_FORMATS:
        raise InputError(f"unknown weights format {weights_format!r}; known: {', '.join(WEIGHTS_FORMATS)}")
    job = TrainJob(
        model=ModelSource.of(model),
        data=DataSource.of(data),
        output=Output.of(output),
        options=options,
        teacher=ModelSource.of(teacher) if teacher is not None else None,
        resume=resume,
        tensorboard=tensorboard,
        device=device,
        weights_format=weights_format,
        finetune=finetune,
        settings=replace(settings, seed=options.seed),
        metric=metric or None,
    )
    open_measures(metric or None)  # say now what cannot be found
    if DataSource.of(data).spec is None:
        raise InputError("training needs data; give it with --data, such as imagefolder:DIR, FILE.npz or mnist5k")
    check_nproc(nproc)
    share_of_batch(options, nproc * asked_for())
    with contextlib.ExitStack() as stack:
        job = replace(job, folder=_folder_of_run(job))
        if os.environ.get("RANK", "0") == "0" and not os.environ.get(LAUNCHED):
            stack.enter_context(claimed(job.output.path))
            _prepare_folder(job)
        try:
            return _launched(job, nproc) if nproc > 1 and asked_for() == 1 else run_job(job)
        except KeyboardInterrupt as stopped:
            raise KeyboardInterrupt(*_how_to_go_on(job)) from stopped


def finetune(
    model: ModelSource | Any, data: DataSource | Any, *, output: Output | str | Path, **choices: Unpack[TrainChoices]
) -> Report | None:
    """Train a model on from its weights and report it beside what it was; `choices` are those of `train`.

    Raises:
        CompressError: as `train`, and for a model without weights to start from.
    """
    return train(model, data, output=output, finetune=True, **choices)


def run_job(job: TrainJob) -> Report | None:
    """Train in this process (one of several, perhaps); the first process delivers."""
    with state.threads(job.settings.threads):
        opened = open_inputs(job.model, job.data, job.settings)
        module = _trainable(opened, job)
        teacher = _teacher(job) if job.teacher is not None else None
        result = fit(
            module,
            opened.data,
            job.options,
            teacher=teacher,
            metric=job.metric,
            output=job.folder,
            resume=job.resume,
            tensorboard=job.tensorboard,
            device=job.device,
        )
        return _deliver(job, opened, result) if os.environ.get("RANK", "0") == "0" else None


def _how_to_go_on(job: TrainJob) -> tuple[str, ...]:
    """What a stopped run leaves, for the line after Ctrl-C."""
    folder = job.folder or job.output.path
    return ("the same command with --resume goes on",) if (folder / "checkpoints" / "last.pt").exists() else ()


def _prepare_folder(job: TrainJob) -> None:
    path = job.output.path
    if job.resume:
        if path.is_dir() and any(path.iterdir()) and not (_folder_of_run(job) / "checkpoints").is_dir():
            raise OutputError(f"{str(path)!r} holds no run to resume: it has no folder checkpoints; choose another -o")
        replace(job.output, overwrite=True).check_folder()
        return
    job.output.check_folder()
    shutil.rmtree(
        path / UNFINISHED, ignore_errors=True
    )  # an earlier run that was to replace this result, and was given up


def _folder_of_run(job: TrainJob) -> Path:
    """Where the run keeps its checkpoints: a result that is to be replaced stays whole until the new one exists."""
    path = job.output.path
    beside = path / UNFINISHED
    if job.resume:
        return beside if (beside / "checkpoints").is_dir() else path
    return beside if job.output.overwrite and path.is_dir() and any(path.iterdir()) else path


def _bring_in(job: TrainJob, folder: OutputFolder) -> None:
    """Move the files of a run that replaces an older result among those that are about to be moved into place."""
    if job.folder is None or job.folder == job.output.path:
        return
    for item in job.folder.iterdir():
        os.replace(item, folder.path / item.name)
    job.folder.rmdir()
    for name in RUN_FILES:
        old = job.output.path / name
        if not (folder.path / name).exists():
            shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)


def _launched(job: TrainJob, nproc: int) -> Report:
    """Run the job in `nproc` processes of this machine; what it reports comes back through a file."""
    with scratch_folder() as scratch:
        path, answer = Path(scratch) / "job", Path(scratch) / "report"
        try:
            path.write_bytes(pickle.dumps(job))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise InputError(
                f"nproc needs a model and data that other processes can open ({str(error).splitlines()[0]}); "
                "name them as file.py:factory"
            ) from error
        launch(nproc, ["-m", "compress.pipeline.training_process", str(path), str(answer)])
        report: Report = pickle.loads(answer.read_bytes())
        return report


def _trainable(opened: Opened, job: TrainJob) -> nn.Module:
    loaded = opened.loaded
    if loaded.kind == "onnx":
        from compress.graph.module import GraphModule

        return GraphModule(loaded.model)
    unweighted = job.finetune and loaded.kind == "module" and job.model.weights is None
    if unweighted and isinstance(job.model.spec, str) and not _may_load_its_own(job.model.spec):
        raise InputError(
            f"finetune starts from weights; give --weights FILE for {loaded.name!r}, or use `compress train`"
        )
    module: nn.Module = loaded.model
    return module


def _may_load_its_own(spec: str) -> bool:
    """Whether a model is made by the user's own code, or read from a folder; names of libraries build random weights."""
    return ":" in spec and not spec.startswith("timm:")


def _teacher(job: TrainJob) -> nn.Module:
    assert job.teacher is not None
    loaded = open_source(job.teacher, seed=job.settings.seed)
    if loaded.kind == "onnx":
        from compress.graph.module import GraphModule

        return GraphModule(loaded.model)
    teacher: nn.Module = loaded.model
    return teacher


def _deliver(job: TrainJob, opened: Opened, result: FitResult) -> Report:
    """Write the files of a trained model and measure them, beside the model as it was where it had weights."""
    module = result.module.eval() if opened.loaded.kind == "module" else result.module
    inputs = opened.inputs
    compared = job.finetune or job.model.weights is not None
    with (
        output_folder(replace(job.output, overwrite=True), is_claimed=True) as folder,
        scratch_folder() as scratch,
    ):
        refused = list(_save(folder, opened, module, inputs, job.weights_format))
        targets: dict[str, Any] = {}
        shipped = _export(folder, opened, module, inputs)
        if isinstance(shipped, Change):
            refused.append(shipped)
            targets = {f"{opened.name} before": opened.model} if compared and opened.loaded.kind != "onnx" else {}
            targets[f"{opened.name} trained"] = module
        else:
            if compared:
                before = to_graph(opened.model, inputs)
                targets[f"{opened.name} before"] = save_onnx(before, Path(scratch) / "before.onnx")
            targets["model.onnx"] = shipped
        made = Delivery(
            targets,
            f"{opened.name}, {'fine-tuned' if job.finetune else 'trained'}",
            steps=[Step("train", module, (_summary(result), *refused), result.notes)],
            notes=_sentences(job, opened, result),
            files={
                "model": str(folder.final / "model.onnx"),
                "weights": str(folder.final / f"weights.{job.weights_format}"),
                "page": str(folder.final / "report.html"),
            },
            shipped=shipped if isinstance(shipped, Path) else None,
            scratch=Path(scratch),
        )
        report = folder.save_report(closing_report(job_of(job, opened), made))
        _bring_in(job, folder)
        return report


def job_of(job: TrainJob, opened: Opened) -> Job:
    """The job as the closing report takes it; the metric that chose the epoch decides in the table too."""
    return Job(opened, job.settings, job.output, measures=open_measures(job.metric))


def _save(
    folder: OutputFolder, opened: Opened, module: nn.Module, inputs: Batch, weights_format: str
) -> tuple[Change, ...]:
    if weights_format != "pt":
        save_weights(module, folder.path / f"weights.{weights_format}")
    if opened.loaded.kind == "onnx":
        return ()
    return folder.save_module(module, inputs)


def _export(folder: OutputFolder, opened: Opened, module: Any, inputs: Batch) -> Path | Change:
    if opened.loaded.kind == "onnx":
        return folder.save_graph(module.write_back())
    try:
        return folder.save_graph(export(module, inputs).model)
    except CompressError as error:  # hours of training must not be lost to an operator that ONNX lacks
        return Change("model.onnx", "saved", reason=str(error), skipped=True)


def _summary(result: FitResult) -> Change:
    values = {
        "epochs": len(result.history),
        "steps": result.steps,
        **{k: v for k, v in result.final.items() if "/" in k},
    }
    return Change("model", f"trained for {counted(len(result.history), 'epoch')}", values=values)


def _sentences(job: TrainJob, opened: Opened, result: FitResult) -> list[str]:
    shown = (
        f"{100 * result.best_score:.2f} %"
        if result.watched.endswith("top1") and result.best_score is not None
        else f"{result.best_score:.4g}"
        if result.best_score is not None
        else "not known"
    )
    words = (
        ["its batch-norm and dropout stayed as the file has them: in eval mode"]
        if opened.loaded.kind != "module"
        else []
    )
    own = job.finetune and job.model.weights is None and opened.loaded.kind == "module"
    if own and isinstance(job.model.spec, str):
        words.append(f"no weights were given: started from those that {job.model.spec} makes")
    words += [f"best epoch: {result.best_epoch} of {len(result.history)}, {result.watched} {shown}"]
    if result.stopped_early:
        words.append(f"stopped early: no improvement in {counted(job.options.patience or 0, 'epoch')}")
    several = job.options.keep == "best" and len(result.history) > 1
    if several and job.options.evaluate_on == "test" and result.watched.startswith("eval"):
        words.append(
            "the kept epoch was chosen on the test part, so its accuracy there is flattering; evaluate_on calibration avoids that"
        )
    return words
