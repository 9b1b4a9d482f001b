"""Latency of our int8 files beside float and ONNX Runtime's own quantizer.

    python benchmarks/int8_latency.py --models resnet18,mobilenet_v2 --threads 1,2 --cache DIR --markdown

Models of torchvision with random weights, batch 1, 224×224. Batch-norm statistics are re-estimated on random images (else
activations of a random network vanish or explode), heads that start at zero get random weights. Each model stands as
float, as `onnxruntime.quantization` makes it (QDQ, per-channel weights, after its own pre-processing; u8 and s8
activations, the better one counts), and as `compress.quantize_static` does, with `--tune` after `tune_latency`.
Every file is timed in one process, in turns; figures are ratios of medians. `--clock cpu` takes processor time instead
of wall time, for a machine that others are using (one thread only). `--cache` keeps the float files for the next run.
Where `nncf` and `openvino` are installed (no dependency of ours), `--openvino` adds what they make of the same float
file, run by OpenVINO in the same turns; its speed-up is over ONNX Runtime's float, as ours is.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch

from compress.graph.exporting import export
from compress.loading.torchvision_ops import torchvision
from compress.onnx_files import save_onnx
from compress.quantization.static import quantize_static
from compress.quantization.tuning import tune_latency
from compress.runtimes.onnxruntime import Session

FIRST_SIX = ("resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0", "vit_b_16")
MODELS = (*FIRST_SIX, "shufflenet_v2_x1_0", "convnext_tiny", "swin_t")
TRANSFORMERS = ("vit_b_16", "swin_t")  # NNCF asks to be told
THEIRS = ("ort u8", "ort s8")


def float_module(name: str, seed: int = 0) -> torch.nn.Module:
    """A random network whose activations have sensible ranges."""
    torch.manual_seed(seed)
    module = torchvision.models.get_model(name, weights=None).eval()
    norms = [layer for layer in module.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    for layer in norms:
        layer.reset_running_stats()
        layer.momentum = None  # a plain average over the batches below
        layer.train()
    if norms:
        with torch.no_grad():
            for _ in range(2):
                module(torch.randn(8, 3, 224, 224))
    for layer in module.modules():
        if isinstance(layer, torch.nn.Linear) and not layer.weight.any():
            torch.nn.init.normal_(layer.weight, std=0.02)
    return module.eval()


def float_file(name: str, folder: Path) -> Path:
    path = folder / f"{name}.onnx"
    if not path.exists():
        graph = export(float_module(name), (torch.randn(2, 3, 224, 224),), check=False).model
        save_onnx(graph, path)
    return path


def theirs(path: Path, signed: bool, samples: list[np.ndarray], folder: Path) -> Path:
    """ONNX Runtime's own quantizer, used as its documentation recommends."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rest = iter(samples)

        def get_next(self):
            sample = next(self.rest, None)
            return None if sample is None else {input_name: sample}

    out = folder / f"{path.stem}.{'s8' if signed else 'u8'}.onnx"
    if out.exists():
        return out
    input_name = Session(path).input_names[0]
    prepared = folder / f"{path.stem}.prepared.onnx"
    try:
        quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
    except Exception as error:  # their pre-processing does not take every model; their quantizer takes it raw
        print(f"# {path.stem}: pre-processing failed ({type(error).__name__}); quantized as exported", file=sys.stderr)
        prepared = path
    quantize_static(
        str(prepared),
        str(out),
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QInt8 if signed else QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return out


class OpenVino:
    """NNCF's int8 model, compiled by OpenVINO for latency on `threads` threads; runs as a Session does."""

    def __init__(self, path: Path, samples: list[np.ndarray], transformer: bool, threads: int) -> None:
        import nncf
        import openvino

        model = openvino.convert_model(path)
        self.input_name = next(iter(model.inputs[0].get_names()))
        kind = nncf.ModelType.TRANSFORMER if transformer else None
        made = nncf.quantize(model, nncf.Dataset(samples), subset_size=len(samples), model_type=kind)
        made.reshape({self.input_name: [1, 3, 224, 224]})
        settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
        self.request = openvino.Core().compile_model(made, "CPU", settings).create_infer_request()

    def run(self, x: np.ndarray) -> None:
        self.request.infer({self.input_name: x}, share_inputs=True)


def ours(path: Path, samples: list[torch.Tensor], tune: bool, threads: int, budget_s: float) -> tuple[ir.Model, list]:
    if not tune:
        return quantize_static(path, samples).model, []

    def build(choices):
        step = quantize_static(path, samples[:1], **choices.options())
        return step.model, step.changes

    tuned = tune_latency(ir.load(path), build, (samples[0],), threads=threads, budget_s=budget_s)
    return quantize_static(path, samples, **tuned.choices.options()).model, [c.as_dict() for c in tuned.changes]


def time_in_turns(models: dict[str, Session | OpenVino], rounds: int, clock) -> dict[str, float]:
    x = np.random.default_rng(0).normal(size=(1, 3, 224, 224)).astype(np.float32)
    times: dict[str, list[float]] = {name: [] for name in models}
    for count in range(rounds + 3):
        for name in models if count % 2 else reversed(models):
            start = clock()
            models[name].run(x)
            if count >= 3:
                times[name].append(1e3 * (clock() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def measure(name: str, threads: int, args: argparse.Namespace, folder: Path) -> dict:
    path = float_file(name, folder)
    generator = np.random.default_rng(1)
    samples = [generator.normal(size=(1, 3, 224, 224)).astype(np.float32) for _ in range(4)]
    made, decisions = ours(path, [torch.from_numpy(s) for s in samples], args.tune, threads, args.budget)
    files: dict[str, Path | ir.Model] = {"float": path, "ours": made}
    if not args.no_ort:
        files |= {kind: theirs(path, kind == "ort s8", samples, folder) for kind in THEIRS}
    sessions: dict[str, Session | OpenVino] = {kind: Session(file, threads=threads) for kind, file in files.items()}
    if args.openvino:
        sessions["NNCF+OpenVINO"] = OpenVino(path, samples, name in TRANSFORMERS, threads)
    clock = time.process_time if args.clock == "cpu" else time.perf_counter
    row = {"model": name, "threads": threads, "ms": time_in_turns(sessions, args.rounds, clock)}
    row["speedup"] = {kind: row["ms"]["float"] / ms for kind, ms in row["ms"].items() if kind != "float"}
    return row | {"decisions": decisions}


def mean(values: list[float]) -> float:
    return math.exp(statistics.fmean(map(math.log, values)))


def table(rows: list[dict], markdown: bool) -> str:
    kinds = list(rows[0]["ms"])
    lines = [["model", "threads", *(f"{kind} ms" for kind in kinds), *(f"{kind} ×" for kind in kinds[1:])]]
    for row in rows:
        figures = [f"{row['ms'][kind]:.2f}" for kind in kinds] + [f"{row['speedup'][kind]:.2f}" for kind in kinds[1:]]
        lines.append([row["model"], str(row["threads"]), *figures])
    for label, names in (("geometric mean, first six", FIRST_SIX), ("geometric mean, all", MODELS)):
        for threads in sorted({row["threads"] for row in rows}):
            chosen = [row for row in rows if row["model"] in names and row["threads"] == threads]
            if chosen:
                means = [f"{mean([row['speedup'][kind] for row in chosen]):.2f}" for kind in kinds[1:]]
                lines.append([f"{label} ({len(chosen)})", str(threads), *([""] * len(kinds)), *means])
    if markdown:
        lines.insert(1, ["---"] * len(lines[0]))
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)) for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(MODELS), help="comma-separated (default: all nine)")
    parser.add_argument("--threads", default="1,2", help="comma-separated thread counts (default: 1,2)")
    parser.add_argument("--rounds", type=int, default=40, help="timed runs of each file (default: 40)")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--cache", type=Path, help="folder that keeps the float files")
    parser.add_argument("--tune", action="store_true", help="tune_latency before quantizing")
    parser.add_argument("--budget", type=float, default=60.0, help="seconds of tuning for each model (default: 60)")
    parser.add_argument("--no-ort", action="store_true", help="leave out ONNX Runtime's own quantizer")
    parser.add_argument("--openvino", action="store_true", help="NNCF's int8 model run by OpenVINO too")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--markdown", action="store_true")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    names = args.models.split(",")
    if unknown := [name for name in names if name not in MODELS]:
        parser.error(f"unknown models {unknown}; known: {', '.join(MODELS)}")
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.cache or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            for threads in map(int, args.threads.split(",")):
                rows.append(measure(name, threads, args, folder))
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
                if args.json:
                    args.json.write_text(json.dumps(rows, indent=1))
    print(table(rows, args.markdown))


if __name__ == "__main__":
    main()
