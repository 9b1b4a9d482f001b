"""Every torchvision classifier, random weights: exported with parity, quantized, run in ONNX Runtime.

    python benchmarks/coverage.py                                # all of them, heaviest last
    python benchmarks/coverage.py --only resnet18 vit_b_16
    python benchmarks/coverage.py --results coverage.jsonl       # may be stopped; goes on where it stopped

Each model runs in a process of its own, so that memory is given back. Images have the side that the model's weights
were trained with, at most 224. `parity` is the largest difference from PyTorch, as a share of the largest output.
`cosine` compares the int8 file's outputs with the float file's; weights are random, so it says that the graph still
computes the same function, not what a trained model would lose.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

LARGEST_SIDE = 224
COLUMNS = (
    "model",
    "side",
    "float MB",
    "int8 MB",
    "parity",
    "int8 nodes",
    "float nodes",
    "cosine",
    "peak GB",
    "s",
    "result",
)


def main() -> None:
    arguments = _arguments()
    if arguments.one:
        print(json.dumps(measure(arguments.one)))
        return
    done = _read(arguments.results)
    wanted = [name for name in arguments.only or _names() if name not in done]
    print(_line(COLUMNS))
    for row in done.values():
        print(_line(_cells(row)))
    deadline = time.monotonic() + arguments.minutes * 60 if arguments.minutes else None
    for name in wanted:
        if deadline is not None and time.monotonic() > deadline:
            break
        row = _in_process(name, arguments.timeout)
        done[name] = row
        print(_line(_cells(row)), flush=True)
        if arguments.results:
            with arguments.results.open("a") as file:
                file.write(json.dumps(row) + "\n")
    failed = [name for name, row in done.items() if row["result"] != "ok"]
    print(f"\n{len(done) - len(failed)} of {len(done)} ok" + (f"; not: {', '.join(failed)}" if failed else ""))
    sys.exit(bool(failed))


def measure(name: str) -> dict[str, Any]:
    """Take one model from its name to an int8 file that runs; return the figures."""
    import resource

    import torch

    import compress
    from compress.evaluation.size import size_bytes
    from compress.loading.models import example_inputs, open_model
    from compress.onnx_files import save_onnx
    from compress.runtimes.onnxruntime import Session

    started = time.monotonic()
    loaded = open_model(name)
    side = min(LARGEST_SIDE, loaded.input_shape[-1])
    inputs = example_inputs(loaded, input_shape=(2, 3, side, side))
    settle_batchnorm(loaded.model, inputs)
    wake_heads(loaded.model)
    exported = compress.export(loaded.model, inputs)
    loaded = None  # the graph has weights of its own
    with tempfile.TemporaryDirectory() as folder:
        float_file = save_onnx(exported.model, Path(folder) / "float.onnx")
        parity = exported.changes[0].values["max_difference"]
        step = compress.quantize_static(exported.model, [inputs])
        exported = None
        int8_file = save_onnx(step.model, Path(folder) / "int8.onnx")
        sizes = [size_bytes(path) / 1e6 for path in (float_file, int8_file)]
        outputs = []
        for path in (float_file, int8_file):
            outputs.append(torch.from_numpy(Session(path).run(*inputs)[0]).flatten().double())
    finite = all(bool(torch.isfinite(output).all()) for output in outputs)
    return {
        "model": name,
        "side": side,
        "float_mb": round(sizes[0], 2),
        "int8_mb": round(sizes[1], 2),
        "parity": parity / max(float(outputs[0].abs().max()), 1e-30),
        "int8_nodes": len(step.done),
        "float_nodes": len(step.skipped),
        "cosine": round(float(torch.cosine_similarity(*outputs, dim=0)), 4),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
        "seconds": round(time.monotonic() - started, 1),
        "result": "ok" if finite else "outputs are not finite",
    }


def wake_heads(module: Any) -> None:
    """Give linear layers of zeros (the heads of the vision transformers) random weights, in place."""
    import torch

    for layer in module.modules():
        if isinstance(layer, torch.nn.Linear) and not layer.weight.any():
            torch.nn.init.normal_(layer.weight, std=0.02)


def settle_batchnorm(module: Any, inputs: Any) -> None:
    """Give batch-norm the statistics of `inputs`, in place; without them deep random networks fade to 1e-14."""
    import torch
    from torch.nn.modules.batchnorm import _BatchNorm

    layers = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a plain average
        layer.train()
    with torch.no_grad():
        module(*inputs)
    module.eval()


def _in_process(name: str, timeout: float) -> dict[str, Any]:
    try:
        shown = subprocess.run(
            [sys.executable, __file__, "--one", name], capture_output=True, text=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        return {"model": name, "result": f"took longer than {timeout:.0f} s"}
    if shown.returncode == 0:
        return json.loads(shown.stdout.splitlines()[-1])
    reason = shown.stderr.strip().splitlines()[-1] if shown.stderr.strip() else f"exit code {shown.returncode}"
    return {"model": name, "result": reason}


def _names() -> list[str]:
    """All of torchvision's classifiers, the ones with most parameters last."""
    from compress.loading.torchvision_models import names
    from compress.loading.torchvision_ops import torchvision

    def parameters(name: str) -> int:
        return torchvision.models.get_model_weights(name).DEFAULT.meta["num_params"]

    return sorted(names(), key=parameters)


def _read(path: Path | None) -> dict[str, dict[str, Any]]:
    if path is None or not path.exists():
        return {}
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {row["model"]: row for row in rows if row["result"] == "ok"}  # failures are tried again


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    if "side" not in row:
        return (row["model"], *[""] * (len(COLUMNS) - 2), row["result"])
    figures = (f"{row['float_mb']:.1f}", f"{row['int8_mb']:.1f}", f"{row['parity']:.1e}", row["int8_nodes"])
    rest = (row["float_nodes"], f"{row['cosine']:.4f}", f"{row['peak_gb']:.1f}", f"{row['seconds']:.0f}", row["result"])
    return tuple(str(cell) for cell in (row["model"], row["side"], *figures, *rest))


def _line(cells: tuple[str, ...]) -> str:
    return f"{cells[0]:<20}" + "".join(f"{cell:>12}" for cell in cells[1:-1]) + f"  {cells[-1]}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these models instead of all")
    parser.add_argument(
        "--results", type=Path, help="file of results, one JSON object a line; models in it are skipped"
    )
    parser.add_argument("--minutes", type=float, help="start no further model after this long")
    parser.add_argument("--timeout", type=float, default=1200, help="seconds for one model (default: 1200)")
    parser.add_argument("--one", metavar="NAME", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
