"""The job behind `compress prune`: a smaller module, fine-tuned where asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compress import state
from compress.batches import example_batch, first_batches, resized_batch
from compress.errors import InputError, PruningError
from compress.evaluation.latency import benchmark
from compress.evaluation.runners import run_by
from compress.graph.exporting import export
from compress.graph.parity import compare
from compress.graph.sparse_storage import store_sparse
from compress.measures.opening import Measures, open_measures
from compress.pipeline.closing import closing_report
from compress.pipeline.for_runtime import check_runtime, in_runtime, settled_runtime
from compress.pipeline.gates import Gates
from compress.pipeline.inputs import DataSource, ModelSource, Opened, Settings, open_inputs
from compress.pipeline.job import Delivery, Job
from compress.pipeline.outputs import Output, OutputFolder, output_folder, size_folder
from compress.pipeline.prune_options import PruneOptions
from compress.pipeline.rehearsal import rehearse_training, rehearsed
from compress.pruning.analysis import Analysis, analysed
from compress.pruning.denormals import flush_denormals
from compress.pruning.iterative import prune_iteratively
from compress.pruning.masks import hold_zeros, make_permanent
from compress.pruning.prune import prune as prune_module
from compress.pruning.prune import prune_channels
from compress.pruning.recalibration import recalibrate_batchnorm
from compress.pruning.request import PruneRequest
from compress.pruning.scores import check_score
from compress.pruning.sizes import each_size
from compress.reporting.report import Report
from compress.runtimes.runtime import AUTO, DEFAULT
from compress.scratch import scratch_folder
from compress.steps import Step
from compress.training.loop import fit

RECALIBRATED = "batch-norm statistics were measured anew on the calibration data"
WEIGHED = ("macs", "parameters", "latency")  # targets that leave open from which layer how much goes
HEAL_MINUTES = 2.0  # the default
SAMPLES = 512  # of the calibration part that scores and reconstruction look at, at most
FITTED_ON = 1024  # samples, with those of the training part, where they are small
MOST_ELEMENTS = 2**26  # of them, in memory
LATENCY_SECONDS = 6.0  # for one measurement on the way to a latency target


def prune(
    model: ModelSource | Any,
    data: DataSource | Any = None,
    *,
    output: Output | str | Path,
    options: PruneOptions | None = None,
    gates: Gates | None = None,
    metric: Any = None,
    task: str = "auto",
    ignore_label: int | None = None,
    settings: Settings | None = None,
) -> Report:
    """Prune a model and leave `model.onnx`, `weights.pt`, `model.pt2` and reports in a folder.

    The report has the model as it was, as it is right after pruning, and (with fine-tuning) as it ships. `metric`, `task`
    and `ignore_label` are as for `open_measures`; they, and the limits, are tried on the model before it is pruned.

    Raises:
        CompressError: one line for whatever cannot be used.
    """
    settings, options = settings or Settings(), options or PruneOptions()
    measures, output = open_measures(metric, task=task, ignore_label=ignore_label), Output.of(output)
    output.check_folder()
    opened = open_inputs(model, data, settings)
    check_pruning(opened, options)
    check_runtime(options.runtime, settings.float_precision)
    job = rehearsed(Job(opened, settings, output, gates or Gates(), measures), models=3)
    several = isinstance(options.amount, tuple)
    with output_folder(output) as folder, scratch_folder() as name:
        scratch = Path(name)
        baseline = scratch / "float.onnx"
        export(opened.model, opened.inputs, path=baseline)
        targets: dict[str, Any] = {f"{opened.name} before": baseline}
        steps, files = [], folder.listed()
        runtime, runtime_notes = settled_runtime(options.runtime, baseline, opened, settings.threads)
        work = Pruning(opened, options, settings, scratch, baseline, job.measures, runtime)
        for amount, step, tuned in each_pruned(work):
            size = size_folder(options.target, amount) if several else ""
            place = folder.inner(size) if several else folder
            if tuned is not None and not several:
                first = "pruned, not fine-tuned" if options.schedule == "one-shot" else "before the last fine-tuning"
                targets[first] = scratch / "pruned.onnx"
                export(step.model, opened.inputs, path=scratch / "pruned.onnx")
            done = _saved(step, tuned, place, opened, options, scratch)
            targets[f"{size}/model.onnx" if several else "model.onnx"] = place.onnx
            steps.append(replace(done, notes=tuple(f"{size}: {note}" for note in done.notes)) if several else done)
            files |= {size: str(place.onnx)} if several else folder.listed()
        if several:
            files.pop("model", None)
        if runtime != DEFAULT or options.runtime == AUTO:
            targets, crashes = in_runtime(targets, runtime, list(targets)[1:], settings.float_precision)
            runtime_notes = (*runtime_notes, *crashes)
        made = Delivery(
            targets,
            f"{opened.name}, pruned",
            steps=steps,
            notes=runtime_notes,
            files=files,
            shipped=None if several else folder.onnx,
            scratch=scratch,
        )
        return folder.save_report(closing_report(job, made))


def _saved(
    step: Step, tuned: nn.Module | None, folder: OutputFolder, opened: Opened, options: PruneOptions, scratch: Path
) -> Step:
    """Write one pruned model's files; return its step with the module that ships and the notes on the files."""
    changes, notes = list(step.changes), list(step.notes)
    module = tuned if tuned is not None else step.model
    flushed = flush_denormals(module)
    if flushed:
        notes.append(f"{flushed} denormal weights set to zero: processors compute with them many times slower")
    changes.extend(folder.save_module(module, opened.inputs))
    shipped = folder.save_graph(export(module, opened.inputs).model)
    if options.sparse_storage:
        stored, sentence = _stored_sparse(shipped, scratch, opened)
        changes.extend(stored)
        notes.append(sentence)
    return replace(step, model=module, changes=tuple(changes), notes=tuple(notes))


def check_pruning(opened: Opened, options: PruneOptions) -> None:
    if opened.loaded.kind == "onnx":
        raise InputError(f"pruning works before export; give the PyTorch model that {opened.name!r} was made from")
    if not options.masks:
        check_score(options.method)
    if options.masks and options.target != "channels":
        raise PruningError(f"masks remove no {options.target}; leave --target and --latency out, or leave --masks out")
    if isinstance(options.amount, tuple):
        _check_several(options)
    if options.target == "blocks" and options.schedule != "one-shot":
        raise PruningError(f"blocks go in one step; leave --schedule {options.schedule} out")
    needs = {
        "fine-tuning": options.finetune_epochs,
        "score 'taylor'": options.method == "taylor",
        "recalibration": options.recalibrate,
        "reconstruction": options.reconstruct,
        "healing": options.heal or options.heal_steps,
    }
    if any(needs.values()) and opened.data is None:
        what = next(name for name, needed in needs.items() if needed)
        raise InputError(f"{what} needs data; give it with --data, such as imagefolder:DIR, FILE.npz or mnist5k")
    if options.reconstruct and (options.masks or options.recalibrate):
        other = "--masks keeps" if options.masks else "--recalibrate measures anew"
        raise InputError(f"{other} what --reconstruct fits; leave one of the two out")
    if options.distill and not options.finetune_epochs:
        raise InputError("distillation happens while fine-tuning; give --finetune-epochs as well")
    rehearse_finetuning(opened, options)


def _check_several(options: PruneOptions) -> None:
    """Refuse what makes one model only."""
    if options.masks:
        raise InputError("masks keep every size, so several amounts make no several sizes; give one amount")
    if options.schedule != "one-shot":
        raise InputError(f"--schedule {options.schedule} prunes one model in steps; give one amount, or leave it out")


def rehearse_finetuning(opened: Opened, options: PruneOptions) -> None:
    """Try on one batch how pruning would be mended; the model before it gives outputs of the same form."""
    if options.finetune_epochs and isinstance(opened.model, nn.Module):
        train = replace(options.train, epochs=options.finetune_epochs)
        rehearse_training(opened, opened.model, train, teacher=opened.model if options.distill else None)


@dataclass(frozen=True)
class Pruning:
    """All that pruning one model takes: what was opened, how, where there is room, what measures and what runs the result."""

    opened: Opened
    options: PruneOptions
    settings: Settings
    scratch: Path
    baseline: Path  # the float file that latencies are measured beside
    measures: Measures = field(default_factory=Measures)
    runtime: str = DEFAULT


def each_pruned(work: Pruning) -> Iterator[tuple[float, Step, nn.Module | None]]:
    """Prune to each amount of the options in turn; several share one analysis. What is yielded: the amount, then as `pruned`."""
    opened, options = work.opened, work.options
    if not isinstance(options.amount, tuple):
        yield options.amount, *pruned(work)
        return
    request = _request(replace(work, options=replace(options, amount=options.sizes[0])))
    with state.threads(work.settings.threads):
        for amount, step in each_size(opened.model, opened.inputs, options.sizes, request):
            yield amount, *_mended(step, work, options.finetune_epochs, [])


def pruned(work: Pruning) -> tuple[Step, nn.Module | None]:
    """Prune by the schedule; return the step, with the module right after pruning, and the fine-tuned module."""
    opened, options = work.opened, work.options
    with state.threads(work.settings.threads):
        request = _request(work)
        rounds = 1 if options.schedule == "one-shot" else max(options.steps, 1)
        epochs = _spread(options.finetune_epochs, rounds)
        sentences: list[str] = []

        def between(module: nn.Module, number: int, count: int) -> nn.Module | None:
            if number == count or not epochs[number - 1]:
                return None
            return _finetuned(module, work, epochs[number - 1], sentences)

        if rounds > 1:
            step = prune_iteratively(
                opened.model,
                opened.inputs,
                request,
                schedule_kind=options.schedule,
                steps=rounds,
                between=between if options.finetune_epochs else None,
            )
        else:
            step = prune_module(opened.model, opened.inputs, request)
        return _mended(step, work, epochs[-1], sentences)


def pruned_alike(opened: Opened, options: PruneOptions, analysis: Analysis | None) -> tuple[Step, Analysis]:
    """Remove channels in one step, by the analysis of an earlier call that differs in the amount alone.

    Returns:
        What `pruned` gives for these options, and the analysis for the next call.
    """
    check_pruning(opened, options)
    request = _request(Pruning(opened, options, Settings(threads=opened.threads, seed=opened.seed), Path(), Path()))
    with torch.no_grad():
        analysis = analysis or analysed(opened.model, example_batch(opened.inputs), request)
    return prune_channels(opened.model, opened.inputs, request, analysis=analysis).step, analysis


def _mended(step: Step, work: Pruning, epochs: int, sentences: list[str]) -> tuple[Step, nn.Module | None]:
    """Recalibrate and fine-tune as the options say; return the step before fine-tuning, and the fine-tuned module."""
    opened, options = work.opened, work.options
    if options.recalibrate:
        loader = opened.calibration()
        step = replace(step, model=recalibrate_batchnorm(step.model, loader), notes=(*step.notes, RECALIBRATED))
    if not epochs:
        return step, None
    last = hold_zeros(step.model) if options.masks else step.model
    tuned = make_permanent(_finetuned(last, work, epochs, sentences))
    return replace(step, notes=(*step.notes, *dict.fromkeys(sentences))), tuned


def _request(work: Pruning) -> PruneRequest:
    opened, options, settings = work.opened, work.options, work.settings
    names = ("amount", "method", "include", "exclude")
    found: dict[str, Any] = {name: getattr(options, name) for name in names} | {"seed": settings.seed}
    if options.masks:
        return PruneRequest(
            **found, scope=options.scope or "uniform", remove_channels=False, n=options.n, dim=options.dim
        )
    fits = reconstructs(opened, options)
    found["scope"] = options.scope or ("auto" if fits and options.target in WEIGHED else "uniform")
    found |= {"target": options.target, "round_to": options.round_to, "reconstruct": fits}
    if (
        options.method == "taylor"
        or fits
        or found["scope"] in ("balanced", "auto")
        or (options.target == "blocks" and opened.data is not None)
    ):
        found["data"] = _samples(opened, options)
    heal_s = 60 * heals(opened, options)
    if heal_s or options.heal_steps:
        trains = opened.data is not None and opened.data.train is not None
        found |= {"heal_s": heal_s, "heal_steps": options.heal_steps}
        found["unlabelled"] = opened.loader("train") if trains else opened.calibration()
    if options.target == "latency":
        found["latency"] = _latency_meter(work)
    return PruneRequest(**found)


def _samples(opened: Opened, options: PruneOptions) -> list[Any]:
    """The calibration samples; where those are few, training samples after them: neither is tested on."""
    found = list(first_batches(opened.calibration(), SAMPLES))
    have = sum(batch.samples for batch in found)
    data = opened.data
    if data is None or data.train is None or data.calibration is None or options.method == "taylor" or not have:
        return found  # gradients of more would take long
    each = sum(value.numel() for value in found[0].values) // max(found[0].samples, 1)
    missing = min(FITTED_ON, MOST_ELEMENTS // max(each, 1)) - have
    return found + (list(first_batches(opened.loader("train"), missing)) if missing > 0 else [])


def heals(opened: Opened, options: PruneOptions) -> float:
    """Minutes: as asked; else where weights are fitted, and no fine-tuning follows."""
    if options.heal_steps is not None:
        return 0.0
    if options.heal is not None:
        return options.heal
    return HEAL_MINUTES if reconstructs(opened, options) and not options.finetune_epochs else 0.0


def reconstructs(opened: Opened, options: PruneOptions) -> bool:
    """As asked; else where it can be done, and nothing else says how batch-norm shall be put right."""
    if options.reconstruct is not None:
        return options.reconstruct
    return opened.calibration_samples is not None and not options.recalibrate


def _latency_meter(work: Pruning) -> Callable[[nn.Module], float]:
    """Measure the exported file in its runtime, interleaved with the baseline's: a ratio that other work on the machine does not change."""
    opened, threads, runtime = work.opened, work.settings.threads, work.runtime
    one = resized_batch(opened.inputs, 1)

    def latency(module: nn.Module) -> float:
        if module is opened.model:
            return 1.0
        path = work.scratch / "candidate.onnx"
        export(module, opened.inputs, path=path, check=False, overwrite=True)
        files = {"before": work.baseline, "after": path}
        targets = {name: run_by(file, runtime) for name, file in files.items()}
        rows = benchmark(targets, one, rounds=30, threads=threads, max_seconds=LATENCY_SECONDS)
        before, after = rows["before"].p50_ms, rows["after"].p50_ms
        assert before is not None and after is not None
        return after / before

    return latency


def _spread(epochs: int, rounds: int) -> list[int]:
    """Share epochs over rounds, the later ones first: the last round must recover the most.

    >>> _spread(5, 3), _spread(2, 4)
    ([1, 2, 2], [0, 0, 1, 1])
    """
    return [epochs // rounds + (1 if number >= rounds - epochs % rounds else 0) for number in range(rounds)]


def _finetuned(module: nn.Module, work: Pruning, epochs: int, sentences: list[str]) -> nn.Module:
    """Train the module on; the user's metric, where there is one, chooses the epoch. Notes for the user are added to `sentences`."""
    opened, options = work.opened, work.options
    train = replace(options.train, epochs=epochs, batch_size=opened.batch_size)
    teacher = opened.model if options.distill else None
    module.eval()
    result = fit(module, opened.data, train, teacher=teacher, metric=work.measures.asked, device="cpu")
    sentences.extend(result.notes)
    return result.module.eval()


def _stored_sparse(path: Path, scratch: Path, opened: Opened) -> tuple[tuple[Any, ...], str]:
    """Store mostly-zero weights sparse, and hold the file to what it computed before."""
    dense = scratch / "dense.onnx"
    dense.write_bytes(path.read_bytes())
    stored = store_sparse(path)
    if stored.after_bytes >= stored.before_bytes:
        return stored.changes, "sparse storage: no weight has more than two thirds of zeros, so the file stays dense"
    one = resized_batch(opened.inputs, 1)
    gap = compare(dense, path, one)
    if gap.difference > 0:
        path.write_bytes(dense.read_bytes())
        return (), f"sparse storage dropped: outputs differ by {gap.difference:g}"
    return stored.changes, (
        f"sparse storage: {stored.before_bytes:,} → {stored.after_bytes:,} bytes, same outputs; "
        "the runtime unfolds the zeros, so the file is smaller and not faster"
    )
