"""Latency of our int8 files in each runtime, beside float, ONNX Runtime's own quantizer and NNCF with OpenVINO.

    python benchmarks/int8_latency.py --models resnet18,mobilenet_v2 --threads 1 --runtime all --cache DIR --markdown --json FILE

Models of torchvision with random weights, batch 1, 224×224. Batch-norm statistics are re-estimated on random images (else
activations of a random network vanish or explode), heads that start at zero get random weights. `--runtime onnxruntime`
sets float beside what `onnxruntime.quantization` makes (QDQ, per-channel weights, after its own pre-processing; u8 and s8
activations, the better one counts) and what `compress.quantize_static` does, with `--tune` after `tune_latency`;
`openvino` adds float OpenVINO, our file for OpenVINO, and where `nncf` is installed (no dependency of ours) what it makes
of the same float file; `all` is both. Shapes are fixed for OpenVINO, and its float layers run in `--float-precision`, ours
and NNCF's alike.

Every file is timed in one process, in turns; figures are ratios of medians over float ONNX Runtime. `--clock cpu` takes
processor time instead of wall time, for a machine that others are using (one thread only). Load time and memory (growth of
the resident set by loading and the first run) are those of a process of its own. `dB` is the distance of the outputs from
the float model's. `--isa` limits what OpenVINO's kernels may use (ONEDNN_MAX_CPU_ISA); ONNX Runtime's cannot be limited and
take what the processor has. With `--json` each finished model is written at once, and a second run goes on behind it;
`--cache` keeps the files of others; `--reuse` takes ours from there too, so that one run builds and the next one times.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import statistics
import subprocess
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
THEIRS = ("ORT u8", "ORT s8")
SHAPE = (1, 3, 224, 224)
INT8 = ("ORT u8", "ORT s8", "NNCF", "ours ORT", "ours OV")
# What is measured in a process of its own: seconds to load, MiB that loading and a first run add.
LOADING = """
import json, resource, sys, time
import numpy as np
kind, path, threads, precision = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
x = np.random.default_rng(0).normal(size=(1, 3, 224, 224)).astype(np.float32)
if kind == "openvino":
    import openvino
    core = openvino.Core()
else:
    import onnxruntime
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
before, start = resident(), time.perf_counter()
if kind == "openvino":
    model = core.read_model(path)
    model.reshape([1, 3, 224, 224])
    options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
    request = core.compile_model(model, "CPU", options | {"INFERENCE_PRECISION_HINT": precision}).create_infer_request()
    loaded = time.perf_counter()
    request.infer([x])
else:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    loaded = time.perf_counter()
    session.run(None, {session.get_inputs()[0].name: x})
print(json.dumps({"load_s": loaded - start, "rss_mib": (resident() - before) / 2**20}))
"""


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


def nncf_file(path: Path, samples: list[np.ndarray], transformer: bool, folder: Path) -> Path:
    """NNCF's int8 model of the same float file, as OpenVINO's own two files."""
    out = folder / f"{path.stem}.nncf.xml"
    if not out.exists():
        import nncf
        import openvino

        model = openvino.convert_model(path)
        kind = nncf.ModelType.TRANSFORMER if transformer else None
        made = nncf.quantize(model, nncf.Dataset(samples), subset_size=len(samples), model_type=kind)
        openvino.save_model(made, out, compress_to_fp16=False)
    return out


class OpenVino:
    """A file that OpenVINO reads, compiled with fixed shapes for latency on `threads` threads; runs as a Session does."""

    def __init__(self, path: Path, threads: int, precision: str) -> None:
        import openvino

        core = openvino.Core()
        model = core.read_model(str(path))
        model.reshape(list(SHAPE))
        settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
        self.compiled = core.compile_model(model, "CPU", settings | {"INFERENCE_PRECISION_HINT": precision})
        self.request = self.compiled.create_infer_request()

    def run(self, x: np.ndarray) -> tuple[np.ndarray, ...]:
        self.request.infer([x], share_inputs=True)
        return tuple(np.array(tensor.data) for tensor in self.request.output_tensors)

    def kernels(self) -> dict[str, int]:
        """How many layers with weights each of its kernels runs, by the kernel's name."""
        found: dict[str, int] = {}
        for node in self.compiled.get_runtime_model().get_ordered_ops():
            info = node.get_rt_info()
            if str(info["layerType"].astype(str)) in ("Convolution", "FullyConnected", "MatMul"):
                kernel = str(info["primitiveType"].astype(str))
                found[kernel] = found.get(kernel, 0) + 1
        return found


def ours(path: Path, samples: list[torch.Tensor], runtime: str, args: argparse.Namespace, threads: int) -> ir.Model:
    if runtime != "onnxruntime" or not args.tune:
        return quantize_static(path, samples, runtime=runtime).model

    def build(choices):
        step = quantize_static(path, samples[:1], **choices.options())
        return step.model, step.changes

    tuned = tune_latency(ir.load(path), build, (samples[0],), threads=threads, budget_s=args.budget)
    print("#", json.dumps([change.as_dict() for change in tuned.changes]), file=sys.stderr)
    return quantize_static(path, samples, **tuned.choices.options()).model


def our_file(path: Path, samples: list[np.ndarray], runtime: str, args, threads: int, folder: Path) -> Path:
    tuned = f".tuned{threads}" if args.tune and runtime == "onnxruntime" else ""
    out = folder / f"{path.stem}.ours.{runtime}{tuned}.onnx"
    if not (args.reuse and out.exists()):
        save_onnx(ours(path, [torch.from_numpy(sample) for sample in samples], runtime, args, threads), out)
    return out


def files_of(name: str, threads: int, args: argparse.Namespace, folder: Path) -> dict[str, tuple[str, Path]]:
    """What stands beside each other: label → (runtime, file)."""
    path = float_file(name, folder)
    generator = np.random.default_rng(1)
    samples = [generator.normal(size=SHAPE).astype(np.float32) for _ in range(4)]
    files = {"float ORT": ("onnxruntime", path)}
    if args.runtime != "openvino":
        if not args.no_ort:
            files |= {kind: ("onnxruntime", theirs(path, kind == "ORT s8", samples, folder)) for kind in THEIRS}
        files["ours ORT"] = ("onnxruntime", our_file(path, samples, "onnxruntime", args, threads, folder))
    if args.runtime != "onnxruntime":
        files["float OV"] = ("openvino", path)
        if importlib.util.find_spec("nncf"):
            files["NNCF"] = ("openvino", nncf_file(path, samples, name in TRANSFORMERS, folder))
        files["ours OV"] = ("openvino", our_file(path, samples, "openvino", args, threads, folder))
    return files


def time_in_turns(models: dict[str, Session | OpenVino], rounds: int, clock) -> dict[str, float]:
    x = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    times: dict[str, list[float]] = {name: [] for name in models}
    for count in range(rounds + 3):
        for name in models if count % 2 else reversed(models):
            start = clock()
            models[name].run(x)
            if count >= 3:
                times[name].append(1e3 * (clock() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def loading(runtime: str, path: Path, threads: int, precision: str) -> dict[str, float]:
    """Seconds to load and MiB that it takes, in a process of its own."""
    command = [sys.executable, "-c", LOADING, runtime, str(path), str(threads), precision]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def bytes_of(path: Path) -> int:
    parts = (path, path.with_suffix(".bin")) if path.suffix == ".xml" else (path,)
    return sum(part.stat().st_size for part in parts)


def signal_db(wanted: np.ndarray, found: np.ndarray) -> float:
    noise = float(np.square(wanted.astype(np.float64) - found).sum())
    return 10 * math.log10(float(np.square(wanted.astype(np.float64)).sum()) / noise) if noise else 200.0


def measure(name: str, threads: int, args: argparse.Namespace, folder: Path) -> dict:
    files = files_of(name, threads, args, folder)
    models: dict[str, Session | OpenVino] = {
        kind: Session(path, threads=threads)
        if runtime == "onnxruntime"
        else OpenVino(path, threads, args.float_precision)
        for kind, (runtime, path) in files.items()
    }
    load = os.getloadavg()[0]
    clock = time.process_time if args.clock == "cpu" else time.perf_counter
    row = {"model": name, "threads": threads, "key": key(name, threads, args), "load_average": load}
    row["ms"] = time_in_turns(models, args.rounds, clock)
    row["speedup"] = {kind: row["ms"]["float ORT"] / ms for kind, ms in row["ms"].items()}
    row["mb"] = {kind: bytes_of(path) / 1e6 for kind, (_, path) in files.items()}
    row["loading"] = {
        kind: loading(runtime, path, threads, args.float_precision) for kind, (runtime, path) in files.items()
    }
    x = np.random.default_rng(7).normal(size=SHAPE).astype(np.float32)
    wanted = models["float ORT"].run(x)[0]
    row["db"] = {kind: signal_db(wanted, models[kind].run(x)[0]) for kind in files if kind in INT8}
    row["kernels"] = {kind: model.kernels() for kind, model in models.items() if isinstance(model, OpenVino)}
    row["isa"] = {"onnxruntime": processor_isa(), "openvino": args.isa or processor_isa()}
    return row


def key(name: str, threads: int, args: argparse.Namespace) -> list:
    """What two rows must share to be the same measurement."""
    return [name, threads, args.runtime, args.float_precision, args.isa, args.clock, args.tune]


def processor_isa() -> str:
    """The widest int8 instructions of this processor, by the flags that Linux shows."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    flags = set(next((line for line in text.splitlines() if line.startswith("flags")), "").split())
    names = (("amx_int8", "AMX"), ("avx512_vnni", "AVX-512 VNNI"), ("avx_vnni", "AVX2 VNNI"), ("avx2", "AVX2"))
    return next((said for flag, said in names if flag in flags), "unknown")


def mean(values: list[float]) -> float:
    return math.exp(statistics.fmean(map(math.log, values)))


def table(rows: list[dict], markdown: bool) -> str:
    """Medians in ms, times float ORT, and for each side dB, MB, load, memory, in two tables."""
    kinds = [kind for kind in rows[0]["ms"] if all(kind in row["ms"] for row in rows)]
    shown = [kind for kind in kinds if kind != "float ORT"]
    lines = [["model", "threads", "float ORT ms", *(f"{kind} ms" for kind in shown), *(f"{kind} ×" for kind in shown)]]
    ratio = "NNCF" in kinds
    lines[0] += ["best of ours ÷ NNCF"] if ratio else []
    for row in rows:
        figures = [f"{row['ms'][kind]:.2f}" for kind in ("float ORT", *shown)]
        figures += [f"{row['speedup'][kind]:.2f}" for kind in shown]
        figures += [f"{best_of_ours(row) / row['speedup']['NNCF']:.2f}"] if ratio else []
        lines.append([row["model"], str(row["threads"]), *figures])
    for label, names in (("geometric mean, first six", FIRST_SIX), ("geometric mean, all", MODELS)):
        for threads in sorted({row["threads"] for row in rows}):
            chosen = [row for row in rows if row["model"] in names and row["threads"] == threads]
            if chosen:
                means = [f"{mean([row['speedup'][kind] for row in chosen]):.2f}" for kind in shown]
                means += (
                    [f"{mean([best_of_ours(row) / row['speedup']['NNCF'] for row in chosen]):.2f}"] if ratio else []
                )
                lines.append([f"{label} ({len(chosen)})", str(threads), *([""] * (1 + len(shown))), *means])
    costs = [["model", "threads", *(f"{kind}: dB, MB, load s, MiB" for kind in kinds)]]
    for row in rows:
        cells = []
        for kind in kinds:
            found, db = row["loading"][kind], row["db"].get(kind)
            said = "–, " if db is None else f"{db:.1f}, "
            cells.append(f"{said}{row['mb'][kind]:.1f}, {found['load_s']:.2f}, {found['rss_mib']:.0f}")
        costs.append([row["model"], str(row["threads"]), *cells])
    loads = sorted(row["load_average"] for row in rows)
    isa = rows[0]["isa"]
    said = (
        f"ONNX Runtime on {isa['onnxruntime']}, OpenVINO on {isa['openvino']}; load average {loads[0]:.1f} to "
        f"{loads[-1]:.1f}; {os.cpu_count()} processors"
    )
    return "\n\n".join((laid_out(lines, markdown), laid_out(costs, markdown), said))


def best_of_ours(row: dict) -> float:
    return max(value for kind, value in row["speedup"].items() if kind.startswith("ours"))


def laid_out(lines: list[list[str]], markdown: bool) -> str:
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
    parser.add_argument("--runtime", choices=("onnxruntime", "openvino", "all"), default="onnxruntime")
    parser.add_argument("--float-precision", choices=("f32", "bf16"), default="f32", help="of OpenVINO's float layers")
    parser.add_argument("--isa", help="widest of OpenVINO's instructions, as AVX512_CORE_VNNI, AVX2 (default: all)")
    parser.add_argument("--reuse", action="store_true", help="take our files from --cache where they are there")
    parser.add_argument("--build", action="store_true", help="make the files of --cache, time nothing")
    parser.add_argument(
        "--json", type=Path, help="write the figures here, each model at once; go on from what is there"
    )
    parser.add_argument("--markdown", action="store_true")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    if args.isa:
        os.environ["ONEDNN_MAX_CPU_ISA"] = args.isa  # read when OpenVINO is first imported, here and in children
    names, counts = args.models.split(","), [int(count) for count in args.threads.split(",")]
    if unknown := [name for name in names if name not in MODELS]:
        parser.error(f"unknown models {unknown}; known: {', '.join(MODELS)}")
    if args.build and args.cache is None:
        parser.error("--build makes the files of --cache; name that folder")
    known = json.loads(args.json.read_text()) if args.json and args.json.exists() else []
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.cache or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for name, threads in [(name, threads) for name in names for threads in counts]:
            if args.build:
                files_of(name, threads, args, folder)
                continue
            if any(row["key"] == key(name, threads, args) for row in known):
                continue
            known.append(measure(name, threads, args, folder))
            print(json.dumps(known[-1]), file=sys.stderr, flush=True)
            if args.json:
                args.json.write_text(json.dumps(known, indent=1))
    wanted = [key(name, threads, args) for name in names for threads in counts]
    if rows := [row for row in known if row["key"] in wanted]:
        print(table(rows, args.markdown))


if __name__ == "__main__":
    main()
