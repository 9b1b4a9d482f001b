"""The stages of a recipe as values: what each does, what it costs, how its result is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import onnx_ir as ir
import torch
from torch import nn

from compress.counting import counted
from compress.errors import InputError
from compress.evaluation.size import sparsity
from compress.files import native_file
from compress.graph.exporting import to_graph
from compress.measures.opening import Measures
from compress.onnx_files import read_onnx, save_onnx
from compress.pipeline.for_runtime import quantized_for, settled_runtime
from compress.pipeline.inputs import Opened, Settings
from compress.pipeline.job import Job
from compress.pipeline.prune import Pruning, check_pruning, pruned, reconstructs, rehearse_finetuning
from compress.pipeline.prune_options import PruneOptions
from compress.pipeline.qat import qat_training
from compress.pipeline.quantize import STEPS
from compress.pipeline.quantize_options import QuantizeOptions
from compress.pipeline.rehearsal import rehearse_training
from compress.pruning.layer_views import LAYERS
from compress.pruning.masks import hold_zeros, make_permanent
from compress.pruning.reconstruction import SAMPLES
from compress.state import copied
from compress.steps import Step
from compress.training.options import FinetuneOptions, TrainOptions

FEW = 0.01  # share of zero weights below which no mask was set


@dataclass(frozen=True)
class Work:
    """What travels from stage to stage. `model` is a module before the border and a graph after it."""

    opened: Opened
    model: nn.Module | ir.Model
    steps: tuple[Step, ...] = ()
    measures: Measures = field(default_factory=Measures)  # whose figure, where the user named one, chooses the epoch

    @property
    def is_graph(self) -> bool:
        return isinstance(self.model, ir.Model)

    def after(self, step: Step) -> Work:
        return replace(self, model=step.model, steps=(*self.steps, step))


class Stage(Protocol):
    """One stage. `run` makes its step; `save` and `restore` keep the step's model in a folder.

    `working` outlives a kill: a stage that can continue by itself leaves its checkpoints there.
    """

    @property
    def name(self) -> str: ...

    def run(self, work: Work, working: Path) -> Step: ...

    def save(self, step: Step, folder: Path) -> None: ...

    def restore(self, work: Work, folder: Path) -> Any: ...

    def cost(self, work: Work, seconds_per_sample: float) -> str: ...

    @property
    def trains(self) -> bool:
        """Whether a figure of the user's chooses among its epochs, so that the result depends on it."""
        ...

    def rehearse(self, opened: Opened) -> None:
        """Try on one batch of the float model what the stage would refuse only after the stages before it."""
        ...


class Unrehearsed:
    """A stage that tries nothing before the work, and trains nothing."""

    @property
    def trains(self) -> bool:
        return False

    def rehearse(self, opened: Opened) -> None:
        return None


class ModuleStage(Unrehearsed):
    """A stage whose result is a module, kept as a plain state dict: no pickled code in the cache."""

    def save(self, step: Step, folder: Path) -> None:
        with native_file(folder / "weights.pt") as file:
            torch.save(step.model.state_dict(), file)

    def restore(self, work: Work, folder: Path) -> nn.Module:
        from compress.loading.state_dicts import load_state_dict

        assert isinstance(work.model, nn.Module)
        module = copied(work.model)
        state = torch.load(folder / "weights.pt", weights_only=True)
        load_state_dict(module, state, str(folder))  # cuts layers to a pruned stage's shapes
        return module


class GraphStage(Unrehearsed):
    """A stage whose result is a graph, kept as an ONNX file."""

    def save(self, step: Step, folder: Path) -> None:
        save_onnx(step.model, folder / "model.onnx")

    def restore(self, work: Work, folder: Path) -> ir.Model:
        return read_onnx(folder / "model.onnx")


@dataclass(frozen=True)
class Prune(ModuleStage):
    """Channels really removed, or weights masked."""

    options: PruneOptions = field(default_factory=PruneOptions)
    name: str = "prune"

    @property
    def trains(self) -> bool:
        return bool(self.options.finetune_epochs)

    def __post_init__(self) -> None:
        if isinstance(self.options.amount, tuple):
            raise InputError(
                f"a recipe makes one model, and prune.amount = {list(self.options.amount)} asks for several; give one"
            )

    def rehearse(self, opened: Opened) -> None:
        rehearse_finetuning(opened, self.options)

    def run(self, work: Work, working: Path) -> Step:
        opened, options = (
            replace(work.opened, loaded=replace(work.opened.loaded, model=_module(work, self.name))),
            self.options,
        )
        check_pruning(opened, options)
        settings = Settings(threads=opened.threads, seed=opened.seed)
        baseline = working / "before.onnx"
        if options.target == "latency":
            save_onnx(to_graph(opened.model, opened.inputs), baseline)
        runtime = options.runtime
        runtime_notes: tuple[str, ...] = ()
        if options.target == "latency":
            runtime, runtime_notes = settled_runtime(options.runtime, baseline, opened, opened.threads)
        step, tuned = pruned(Pruning(opened, options, settings, working, baseline, work.measures, runtime))
        step = replace(step, notes=(*runtime_notes, *step.notes))
        return replace(step, model=tuned if tuned is not None else step.model)

    def cost(self, work: Work, seconds_per_sample: float) -> str:
        words = "seconds to a minute: one trace, scores, one check"
        model = work.opened.model
        if self.options.masks or not isinstance(model, nn.Module) or not reconstructs(work.opened, self.options):
            return words
        layers = sum(isinstance(part, LAYERS) for part in model.modules())
        samples = min(SAMPLES, work.opened.calibration_samples or 0)
        seconds = layers * samples * seconds_per_sample
        return f"{words}; up to {duration(seconds)} more: as many as {counted(layers, 'layer')} fitted on {counted(samples, 'sample')}"


@dataclass(frozen=True)
class Finetune(ModuleStage):
    """Training on from the weights there are, from the float model's answers too where `distill`."""

    options: TrainOptions = field(default_factory=FinetuneOptions)
    distill: bool = False
    name: str = "finetune"

    @property
    def trains(self) -> bool:
        return True

    def rehearse(self, opened: Opened) -> None:
        if isinstance(opened.model, nn.Module):
            rehearse_training(opened, opened.model, self.options, teacher=opened.model if self.distill else None)

    def run(self, work: Work, working: Path) -> Step:
        from compress.training.loop import fit

        module = _module(work, self.name)
        teacher = work.opened.model if self.distill else None
        masked = sparsity(module) > FEW
        if masked:
            module = hold_zeros(module)  # what masks have zeroed stays zero
        options = replace(self.options, seed=work.opened.seed or self.options.seed)
        begun = (working / "checkpoints" / "last.pt").exists()  # of a run that was killed
        result = fit(
            module,
            work.opened.data,
            options,
            teacher=teacher,
            metric=work.measures.asked,
            output=working,
            resume=begun,
        )
        trained = make_permanent(result.module) if masked else result.module
        last = result.final
        words = ", ".join(f"{key} {last[key]:.4f}" for key in ("train/loss", "eval/loss", "eval/top1") if key in last)
        notes = (f"trained for {counted(len(result.history), 'epoch')}: {words}", *result.notes)
        return Step("finetune", trained.eval(), notes=notes)

    def cost(self, work: Work, seconds_per_sample: float) -> str:
        data = work.opened.data
        if data is None or data.train is None:
            return "cannot run: there is no training data"
        passes = 4 if self.distill else 3  # forward, twice that for backward, and the teacher
        samples = len(data.train)  # type: ignore[arg-type]  # a data set with a length
        seconds = self.options.epochs * samples * seconds_per_sample * passes
        return f"about {duration(seconds)}: {counted(self.options.epochs, 'epoch')} of {counted(samples, 'sample')}"


@dataclass(frozen=True)
class Export(GraphStage):
    """Batch-norm folded, then the module as an ONNX graph, checked against it."""

    name: str = "export"

    def run(self, work: Work, working: Path) -> Step:
        from compress.fusion.batchnorm import fuse
        from compress.graph.exporting import export

        fused = fuse(_module(work, self.name), work.opened.inputs)
        step = export(fused.model, work.opened.inputs)
        return Step("fuse, export", step.model, (*fused.changes, *step.changes), (*fused.notes, *step.notes))

    def cost(self, work: Work, seconds_per_sample: float) -> str:
        return "seconds to a minute: one trace, one comparison with PyTorch"


@dataclass(frozen=True)
class Quantize(GraphStage):
    """The graph in int8."""

    options: QuantizeOptions = field(default_factory=QuantizeOptions)
    name: str = "quantize"

    def rehearse(self, opened: Opened) -> None:
        if self.options.method == "qat" and isinstance(opened.model, nn.Module):
            rehearse_training(opened, opened.model, qat_training(self.options, opened.seed), teacher=opened.model)

    def run(self, work: Work, working: Path) -> Step:
        job = Job(work.opened, Settings(threads=work.opened.threads, seed=work.opened.seed))
        step, _ = quantized_for(work.model, job, self.options, _quantized, working)
        return step

    def cost(self, work: Work, seconds_per_sample: float) -> str:
        if self.options.method == "dynamic":
            return "seconds: weights only"
        samples = work.opened.calibration_samples
        if samples is None:
            return "cannot run: there is no calibration data"
        return (
            f"about {duration(samples * seconds_per_sample)} and a few seconds: {counted(samples, 'sample')} calibrate"
        )


def _quantized(graph: Any, job: Job, options: QuantizeOptions) -> Step:
    return STEPS[options.method](graph, job.opened, options)


def _module(work: Work, stage: str) -> nn.Module:
    if isinstance(work.model, nn.Module):
        return work.model
    raise InputError(
        f"stage {stage} works on a PyTorch module, and {work.opened.name!r} is an ONNX graph; leave it out"
    )


def duration(seconds: float) -> str:
    """Format a rough time.

    >>> duration(200)
    '3 min'
    """
    return (
        f"{max(1, round(seconds))} s"
        if seconds < 90
        else f"{round(seconds / 60)} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )


STAGES: dict[str, Callable[..., Any]] = {
    "prune": Prune,
    "finetune": Finetune,
    "export": Export,
    "quantize": Quantize,
}
