"""The job behind `compress quantize`: a float model to a measured int8 file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.errors import QuantizationError, UnsupportedOperatorError
from compress.evaluation.runners import Target, open_runner
from compress.graph.constants import stored_bytes
from compress.graph.exporting import to_graph
from compress.measures.opening import open_measures
from compress.onnx_files import file_bytes, save_onnx
from compress.pipeline.closing import closing_report
from compress.pipeline.for_runtime import check_runtime, in_runtime, quantized_for
from compress.pipeline.gates import Gates
from compress.pipeline.inputs import DataSource, ModelSource, Opened, Settings, open_inputs
from compress.pipeline.job import Delivery, Job, Timing
from compress.pipeline.outputs import Output, output_folder
from compress.pipeline.quantize_options import NO_DATA, QuantizeOptions
from compress.pipeline.rehearsal import rehearsed
from compress.reporting.report import Report
from compress.runtimes.runtime import AUTO, DEFAULT
from compress.scratch import scratch_folder
from compress.steps import Step
from compress.taking import takes

if TYPE_CHECKING:
    from compress.quantization.options import StaticOptions

UNTIMED = "nothing is timed: the file does not tell the sizes of its inputs; declare them, as in --input x:1,512"
WORTH = 0.98  # of the weights' bytes: a result that keeps more of them is none
QUICK_S = 60.0  # timing that takes longer is done on request only


@takes()
def quantize(
    model: ModelSource | Any,
    data: DataSource | Any = None,
    *,
    output: Output | str | Path,
    options: QuantizeOptions | None = None,
    gates: Gates | None = None,
    metric: Any = None,
    task: str = "auto",
    ignore_label: int | None = None,
    settings: Settings | None = None,
) -> Report:
    """Quantize a model and leave `model.onnx` and its reports in a folder, measured beside the float model.

    With `gates.max_drop`, static quantization leaves in float the fewest layers that keep the calibration part within it.
    With target `auto`, forms are timed on this machine where that takes less than a minute (`options.tune_latency`).
    `metric` (one or several, the first decides), `task` and `ignore_label` are as for `open_measures`; they, and the
    limits, are tried on the float model first. The files are saved whether or not a gate is met; the report's `failed`
    says which were not.

    Raises:
        CompressError: one line for whatever cannot be used.
    """
    settings, options = settings or Settings(), options or QuantizeOptions()
    output = Output.of(output)
    output.check_folder()
    measures = open_measures(metric, task=task, ignore_label=ignore_label)
    if options.runtime == "torch":
        from compress.pipeline.quantize_torch import quantize_torch

        return quantize_torch(
            model, data, output=output, options=options, gates=gates, measures=measures, settings=settings
        )
    check_runtime(options.runtime, settings.float_precision)
    options.checked()
    opened = open_inputs(model, data, settings, needs_inputs=options.method not in NO_DATA)
    check_runs(opened)
    timing = Timing() if opened.has_inputs else None
    job = rehearsed(Job(opened, settings, output, gates or Gates(), measures, timing))
    with output_folder(output) as folder, scratch_folder() as scratch:
        graph = to_graph(opened.model, opened.inputs)
        step, runtime = quantized_for(graph, job, options, _quantized, Path(scratch))
        check_gained(graph, step)
        shipped, source = folder.save_graph(step.model), _float_file(opened, graph, Path(scratch))
        kind = options.kind
        targets: dict[str, Target] = {_float_name(opened): source, kind: shipped}
        crash_notes: tuple[str, ...] = ()
        if runtime != DEFAULT or options.runtime == AUTO:
            targets, crash_notes = in_runtime(targets, runtime, [kind], settings.float_precision)
        made = Delivery(
            targets,
            f"{opened.name}, {options.method} {kind}",
            steps=[step],
            notes=crash_notes if opened.has_inputs else (*crash_notes, UNTIMED),
            files=folder.listed(),
            shipped=shipped,
            source=source,
            gated=[kind],
            scratch=Path(scratch),
        )
        return folder.save_report(closing_report(job, made))


def check_runs(opened: Opened) -> None:
    """Run the model once, so that what it refuses (an operator, a shape) is reported before hours of work.

    Raises:
        ModelError, InputError: it does not run on these inputs.
    """
    if opened.has_inputs:
        open_runner(opened.model, threads=opened.threads)(opened.inputs)


def check_gained(graph: Any, step: Step) -> None:
    """A graph that nothing was done to, or whose weights take no less room than before, is no result.

    Raises:
        QuantizationError: with the reasons, or both sizes.
    """
    if not step.done:
        why = "; ".join(dict.fromkeys(change.reason for change in step.changes if change.reason)) or step.notes[-1]
        raise QuantizationError(f"no layer of this model can be quantized: {why}; keep the float file")
    before, after = stored_bytes(graph), stored_bytes(step.model)
    if after > WORTH * before > 0:
        raise QuantizationError(
            f"the result would be hardly smaller: its weights take {after:,} bytes, those of the model {before:,}; "
            "what is added to the file weighs more, so keep the float file, or try --method static"
        )


def _float_name(opened: Opened) -> str:
    return opened.name if "float" in opened.name else f"{opened.name} float32"


def _float_file(opened: Opened, graph: Any, scratch: Path) -> Path:
    """The float model as the runtime would be given it: the user's own file, else the exported one."""
    path = opened.loaded.path
    return path if opened.loaded.kind == "onnx" and path is not None else save_onnx(graph, scratch / "float.onnx")


def _quantized(graph: Any, job: Job, options: QuantizeOptions) -> Step:
    """The step, with narrower weights where those asked for make the file larger than it may be."""
    step, limit = _with_bits(graph, job, options), job.limits.max_size
    size = None if limit is None else file_bytes(step.model)
    if options.method != "static" or options.weight_bits != 8 or size is None or limit is None or size <= limit:
        return step
    try:
        step = _with_bits(graph, job, replace(options, weight_bits=4))
    except UnsupportedOperatorError as error:
        return replace(step, notes=(*step.notes, f"--max-size: four bits are not to be had: {error}"))
    note = f"--max-size: with 8 bits {size:,} bytes; with 4, layer by layer 8, {file_bytes(step.model):,}"
    return replace(step, notes=(*step.notes, note))


def _with_bits(graph: Any, job: Job, options: QuantizeOptions) -> Step:
    opened, max_drop = job.opened, job.limits.max_drop
    # Tuning times ONNX Runtime's kernels.
    tunes = options.tune_latency is None and options.target == "auto" and options.runtime != "openvino"
    if options.method != "static":
        return STEPS[options.method](graph, opened, options)
    from compress.pipeline.within_limits import only_checked, quantize_to_budget, sized

    static = sized(options.static(), graph, job.limits.max_size)
    if max_drop is None and (tunes or options.tune_latency):
        return _tuned(graph, opened, static, only_under_s=None if options.tune_latency else QUICK_S)
    if max_drop is None:
        return _plain(graph, opened, static)
    if options.tune_latency:
        return only_checked(_tuned(graph, opened, static), "--tune-latency chooses the layers by their speed")
    return quantize_to_budget(graph, job, static)


def _static(graph: Any, opened: Opened, options: QuantizeOptions) -> Step:
    made = _tuned if options.tune_latency else _plain
    return made(graph, opened, options.static())


def _plain(graph: Any, opened: Opened, static: StaticOptions) -> Step:
    from compress.quantization.static import quantize_static

    return quantize_static(graph, opened.calibration(), static, threads=opened.threads)


def _tuned(graph: Any, opened: Opened, static: StaticOptions, *, only_under_s: float | None = None) -> Step:
    from compress.quantization.tuned import quantize_tuned
    from compress.quantization.tuning import HERE

    step = quantize_tuned(
        graph,
        opened.calibration(),
        only_under_s=only_under_s,
        options=static,
        example_inputs=opened.inputs,
        threads=opened.threads,
    )
    # The table times the file that ships; the tuning's own figures beside it would be a second speed-up.
    return replace(step, notes=tuple(note for note in step.notes if HERE not in note))


def _dynamic(graph: Any, opened: Opened, options: QuantizeOptions) -> Step:
    from compress.quantization.dynamic import quantize_dynamic

    return quantize_dynamic(graph, options.dynamic())


def _weight_only(graph: Any, opened: Opened, options: QuantizeOptions) -> Step:
    from compress.quantization.weight_only import quantize_weight_only

    data = opened.calibration() if opened.data is not None else None
    return quantize_weight_only(graph, data, options.weight_only(), threads=opened.threads)


def _half(graph: Any, opened: Opened, options: QuantizeOptions) -> Step:
    from compress.quantization.half import quantize_float16

    data = opened.calibration() if opened.data is not None else None
    return quantize_float16(graph, data, options.half(), threads=opened.threads)


def _qat(graph: Any, opened: Opened, options: QuantizeOptions) -> Step:
    from compress.pipeline.qat import quantize_qat

    return quantize_qat(graph, opened, options)


STEPS: Mapping[str, Callable[[Any, Opened, QuantizeOptions], Step]] = {
    "static": _static,
    "dynamic": _dynamic,
    "weight-only": _weight_only,
    "float16": _half,
    "qat": _qat,
}
