"""The job behind `compress sensitivity`: what quantizing each layer alone costs and gains, the worst layer first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from compress.batches import first_batches, read_batch
from compress.counting import counted
from compress.errors import InputError
from compress.evaluation.accuracy import evaluate_all
from compress.graph.exporting import to_graph
from compress.measures import deciding
from compress.measures.figure import scale_of
from compress.measures.opening import open_measures
from compress.pipeline.inputs import DataSource, ModelSource, Settings, open_inputs
from compress.pipeline.job import Job
from compress.pipeline.quantize_options import QuantizeOptions
from compress.pipeline.rehearsal import rehearsed
from compress.reporting.environment import describe
from compress.reporting.report import Report
from compress.taking import takes

if TYPE_CHECKING:
    from compress.quantization.layer_errors import LayerError
    from compress.steps import Measure

SAMPLES = 64
FEWEST = 32  # samples; with fewer, the order of the layers is half chance


@takes()
def sensitivity(
    model: ModelSource | Any,
    data: DataSource | Any,
    *,
    options: QuantizeOptions | None = None,
    samples: int = SAMPLES,
    metric: Any = None,
    task: str = "auto",
    ignore_label: int | None = None,
    settings: Settings | None = None,
) -> Report:
    """Quantize each layer alone and measure it: a report whose `details["layers"]` has the worst first.

    Noise is a share of the signal's power: at the model's outputs (`sensitivity`), there with the layer's weights or its
    activations alone (`weights_noise`, `activations_noise`), at the layer's own output (`own_noise`). `lost` is of the
    figure that decides, on the same calibration samples, where they have labels.

    Raises:
        CompressError: one line for whatever cannot be used; static quantization alone has layers to tell apart.
    """
    from compress.quantization.sensitivity import sensitivity as measured

    options, settings = options or QuantizeOptions(accuracy="fast"), settings or Settings()
    if options.method != "static":
        raise InputError(f"sensitivity is of static quantization, not {options.method!r}; leave --method out")
    measures = open_measures(metric, task=task, ignore_label=ignore_label)
    opened = open_inputs(model, data, settings)
    batches = opened.calibration()
    job = rehearsed(Job(opened, settings, measures=measures, timing=None))
    graph = to_graph(opened.model, opened.inputs)
    score, figure = _score(graph, job, samples)
    found = measured(
        graph, batches, options.static(), samples=samples, score=score, timed=True, threads=settings.threads
    )
    notes = [*opened.notes, f"each layer alone in int8, all others in float, on {samples} calibration samples at most"]
    if figure is not None:
        notes.append(f"lost: {figure.name}{', points' if figure.unit == '%' else ''}, on the same samples")
    else:
        notes.append("no labels in the calibration part: layers are told apart by the noise at the outputs (dB) alone")
    if (opened.calibration_samples or FEWEST) < FEWEST:
        notes.append(f"{opened.calibration_samples} calibration samples are few; the order holds from {FEWEST} on")
    return Report(
        title=f"Sensitivity of {opened.name}, {counted(len(found), 'layer')}",
        notes=tuple(notes),
        details={"layers": [_as_row(item, figure) for item in found]},
        environment=replace(describe(), seed=settings.seed),
    )


def _score(graph: ir.Model, job: Job, samples: int) -> tuple[Callable[[ir.Model], float] | None, Measure | None]:
    """What measures a graph on the first calibration samples, and the figure that decides; (None, None) without labels."""
    taken = list(first_batches(job.opened.calibration(), samples))
    if not taken or read_batch(taken[0]).target is None:
        return None, None

    def row(target: ir.Model) -> Any:
        named = {"graph": target}
        return evaluate_all(named, taken, measures=job.measures, intervals=False, threads=job.settings.threads)["graph"]

    figure = deciding.deciding(row(graph))
    return (None, None) if figure is None else (lambda target: deciding.score(row(target)), figure)


def _as_row(item: LayerError, figure: Measure | None) -> dict[str, Any]:
    """One layer as plain values, under the names that the page and the table know."""
    lost = {} if item.lost is None or figure is None else {"lost": item.lost * scale_of(figure.unit)}
    return {
        "name": item.layer,
        "node": item.node,
        "operator": item.op_type,
        "sensitivity": item.error,
        "weights_noise": item.weights,
        "activations_noise": item.activations,
        "own_noise": item.own,
        "agreement": item.agreement,
        "bytes_saved": item.bytes_saved,
        "milliseconds_saved": item.ms_saved,
        **lost,
    }
