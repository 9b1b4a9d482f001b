"""The job behind `compress doctor FILE --for RUNTIME`: what a runtime would refuse of a quantized file, or run in float."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from compress.counting import counted
from compress.errors import CompressError, InputError, nearest
from compress.escaping import terminal
from compress.onnx_files import read_onnx
from compress.quantization.rules import RULES
from compress.quantization.rules.layers import layers_of, name_of
from compress.quantization.rules.rule import REFUSED, WRONG, Finding, broken
from compress.runtimes.runtime import INTEGERS, find_runtime
from compress.taking import takes

SHOWN = 3  # nodes named in the text; the JSON has all


@dataclass(frozen=True)
class Suitability:
    """A quantized file held against one runtime's rules; `ran` is what the installed runtime really does, by layer."""

    file: str
    runtime: str
    findings: tuple[Finding, ...]
    ran: dict[str, str]  # layer → "int8" or "float"; empty where the runtime is not installed
    note: str

    @property
    def fits(self) -> bool:
        """Whether nothing in it is refused or computed otherwise than it says."""
        return not any(finding.effect in (REFUSED, WRONG) for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        return {"schema_version": 1, "fits": self.fits, **asdict(self)}

    def text(self) -> str:
        lines = [f"{terminal(Path(self.file).name)} for {self.runtime}: {'fits' if self.fits else 'does not fit'}"]
        for finding in self.findings:
            names = ", ".join(terminal(name) for name in finding.nodes[:SHOWN])
            more = ", …" if len(finding.nodes) > SHOWN else ""
            count = f"{len(finding.nodes)} node{'s' * (len(finding.nodes) > 1)}"
            lines.append(f"  {finding.effect:8} {count}: {finding.text}")
            lines.append(f"           {names}{more} ({finding.source})")
        if not self.findings:
            lines.append("  no rule is broken")
        return "\n".join([*lines, f"  {self.note}"])


@takes()
def suits(path: str | Path, runtime: str) -> Suitability:
    """Hold a quantize/dequantize file against a runtime's rules, and against that runtime where it is installed.

    Args:
        runtime: onnxruntime, openvino, tensorrt (`quantization.rules.RULES`).

    Raises:
        InputError: an unknown runtime.
        ModelError: the file cannot be read, or is not quantized.
    """
    if runtime not in RULES:
        raise InputError(f"no rules are known of runtime {runtime!r}; {nearest(runtime, RULES)}")
    if Path(path).is_dir():  # the folder that a command left
        path = Path(path) / "model.onnx"
    graph = read_onnx(path)
    if not any(node.op_type == "DequantizeLinear" or "QLinear" in node.op_type for node in graph.graph.all_nodes()):
        raise InputError(f"{Path(path).name} is not quantized: it has no QuantizeLinear and DequantizeLinear to judge")
    findings = broken(RULES[runtime], graph)
    ran, note = _really(graph, runtime)
    return Suitability(str(path), runtime, findings, ran, note)


def _really(graph: ir.Model, runtime: str) -> tuple[dict[str, str], str]:
    """What the installed runtime makes of each layer with a weight, and a sentence on it."""
    if runtime == "tensorrt":
        return {}, "TensorRT does not run here: these are its rules, not its answer"
    layers = [name_of(layer.node) for layer in layers_of(graph) if layer.weighted]
    try:
        found = find_runtime(runtime)
        integer = {name for name, kind in found.precisions(graph).items() if kind in INTEGERS}
        who = f"{found.title} {found.version()}"
    except CompressError as error:
        return {}, f"not tried in {runtime} itself: {error}"
    ran = {name: "int8" if name in integer else "float" for name in layers}
    count = sum(kind == "int8" for kind in ran.values())
    return ran, f"{who} here runs {count} of {counted(len(ran), 'layer')} with weights in int8"
