"""The job behind `compress export`: any model to one ONNX file, checked and weighed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compress import state
from compress.batches import resized_batch
from compress.errors import InputError, OutputError
from compress.graph.dimensions import Wanted
from compress.graph.exporting import export as export_graph
from compress.graph.opset import check_opset
from compress.locking import claimed
from compress.pipeline.closing import measure
from compress.pipeline.inputs import DataSource, ModelSource, Settings, open_inputs
from compress.pipeline.job import Job
from compress.pipeline.outputs import Output
from compress.reporting.environment import describe
from compress.reporting.report import Report


@dataclass(frozen=True)
class ExportOptions:
    """What the ONNX file shall be like; `dynamic` and `opset` are those of `compress.export`.

    Raises:
        InputError: a dimension or an opset that cannot be; a fixed batch beside dynamic dimensions.
    """

    dynamic: Any = None
    batch: int | None = None  # fixes the batch, and with it every other size
    static_batch: bool = False  # fixes the batch to that of the example
    opset: int | None = None
    check: bool = True  # against PyTorch

    def __post_init__(self) -> None:
        if self.batch is not None and self.dynamic is not None:
            raise InputError(
                "a fixed batch (--batch) and dynamic dimensions (--dynamic) exclude each other; give one of them"
            )
        Wanted.of(self.dynamic)
        check_opset(self.opset)


def export(
    model: ModelSource | Any,
    data: DataSource | Any = None,
    *,
    output: Output | str | Path,
    options: ExportOptions | None = None,
    settings: Settings | None = None,
) -> Report:
    """Export a model to `output` (a .onnx file); parity with PyTorch is checked on real inputs where there is data.

    Raises:
        InputError: the output is not named .onnx, or the model is an ONNX file already.
        OutputError: the output exists, or cannot be written.
        ExportError, ParityError: see `compress.export`.
    """
    settings, output, options = settings or Settings(), Output.of(output), options or ExportOptions()
    if output.path.is_dir():
        raise OutputError(
            f"output {str(output.path)!r} is a folder; name a file such as -o {output.path / 'model.onnx'}"
        )
    if output.path.suffix != ".onnx":
        raise InputError(
            f"output {str(output.path)!r} does not end in .onnx; name it -o {output.path.with_suffix('.onnx')}"
        )
    output.check()
    opened = open_inputs(model, data, settings)
    inputs = opened.inputs if options.batch is None else resized_batch(opened.inputs, options.batch)
    if opened.loaded.kind == "onnx":
        raise InputError(f"{opened.name!r} is an ONNX file already; `compress quantize` takes it as it stands")
    with claimed(output.path), state.threads(settings.threads):
        output.check()
        step = export_graph(
            opened.model,
            inputs,
            path=output.path,
            dynamic=options.dynamic,
            dynamic_batch=not options.static_batch and options.batch is None,
            opset=options.opset,
            check=options.check,
            threads=settings.threads,
            overwrite=output.overwrite,
        )
    values = step.changes[0].values
    agreement = (
        [f"ONNX Runtime and PyTorch agree to {values['max_difference']:.1g}"] if "max_difference" in values else []
    )
    measured = replace(opened, inputs=inputs)
    rows = measure(Job(measured, settings, output, timing=None), {output.path.name: output.path})
    return Report(
        rows=rows,
        steps=(step,),
        notes=(*opened.notes, *agreement, *step.notes),
        title=f"Export of {opened.name}",
        files={"model": str(output.path)},
        environment=describe(threads=settings.threads, seed=settings.seed),
    )
