"""The job behind `compress export --format openvino`: any model, float or quantized, as OpenVINO's own two files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compress import state
from compress.errors import InputError
from compress.files import written_beside
from compress.graph.exporting import to_graph
from compress.graph.parity import compare
from compress.locking import claimed
from compress.pipeline.inputs import DataSource, ModelSource, Settings, open_inputs
from compress.pipeline.outputs import Output
from compress.reporting.environment import describe
from compress.reporting.report import Report
from compress.reporting.table import size
from compress.runtimes.runtime import find_runtime


def export_openvino(
    model: ModelSource | Any,
    data: DataSource | Any = None,
    *,
    output: Output | str | Path,
    settings: Settings | None = None,
) -> Report:
    """Write a model as `output` (.xml) and its weights beside it (.bin); the note says how far the two runtimes are apart.

    Raises:
        InputError: OpenVINO is not installed, or the output is not named .xml.
        OutputError: a file is there already, or cannot be written.
        ModelError: OpenVINO cannot take the model, with its reason.
    """
    find_runtime("openvino").check()
    from compress.runtimes.openvino import save_ir

    settings, output = settings or Settings(), Output.of(output)
    if output.path.suffix != ".xml":
        raise InputError(
            f"output {str(output.path)!r} does not end in .xml; name it -o {output.path.with_suffix('.xml')}"
        )
    weights = output.path.with_suffix(".bin")
    for path in (output.path, weights):
        Output(path, output.overwrite).check()
    opened = open_inputs(model, data, settings)
    with claimed(output.path), state.threads(settings.threads):
        graph = to_graph(opened.model, opened.inputs)
        with written_beside(output.path) as beside:
            save_ir(graph, beside)
    session = find_runtime("openvino").open(output.path, threads=settings.threads)
    apart = compare(graph, session.run, opened.inputs)
    total = sum(path.stat().st_size for path in (output.path, weights))
    return Report(
        notes=(
            *opened.notes,
            f"{size(total)} in two files; OpenVINO and ONNX Runtime agree to {apart.difference:.2g} "
            f"(largest output {apart.scale:.3g})",
        ),
        title=f"Export of {opened.name} for OpenVINO",
        files={"model": str(output.path), "weights": str(weights)},
        environment=describe(threads=settings.threads, seed=settings.seed),
    )
