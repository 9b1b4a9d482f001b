"""Time, memory of calibration beside those of onnxruntime.quantization.

    python benchmarks/calibration.py [--model FILE.onnx] [--images 64] [--many 512] [--methods percentile entropy]

Every row runs in a process of its own, on the same graph (default: torchvision's mobilenet_v2 with random weights,
exported here) and the same random images of 224×224, and ends when the ranges are known. Peak memory is the process's
own high-water mark, less what it held before calibration began. The images are made batch by batch, so that they do not
count. The second table holds ours to 512 images: memory must be within 10 % of that for 64.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tabulate import tabulate

MIB = 2**20
METHODS = ("minmax", "percentile", "entropy", "mse")
THEIRS = ("minmax", "percentile", "entropy")


class Images:
    """A re-iterable of batches of images that look like normalized photographs: smooth, not white noise."""

    def __init__(self, count: int, batch: int, size: int = 224) -> None:
        self.count, self.batch, self.size = count, batch, size

    def __iter__(self) -> Iterator[np.ndarray]:
        generator = np.random.default_rng(0)
        for first in range(0, self.count, self.batch):
            coarse = generator.standard_normal((min(self.batch, self.count - first), 3, self.size // 8, self.size // 8))
            yield np.kron(coarse.astype(np.float32), np.ones((1, 1, 8, 8), np.float32))


class Memory:
    """How far this process's resident memory rises above where it stood, and how high it gets."""

    def __init__(self) -> None:
        gc.collect()
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew from here
        self.before = self._read("VmRSS:") or self._peak()

    def rise(self) -> int:
        return self._peak() - self.before

    def _peak(self) -> int:
        return self._read("VmHWM:") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    @staticmethod
    def _read(field: str) -> int:
        status = Path("/proc/self/status")
        lines = status.read_text().splitlines() if status.exists() else []
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field)), 0)


def ours(model: Path, method: str, images: int, batch: int) -> dict[str, float]:

    from compress.quantization.calibration import calibrate
    from compress.quantization.placement import plan_placement
    from compress.quantization.range_table import resolve_ranges
    from compress.quantization.static import prepare

    graph, _ = prepare(model, [])
    plan = plan_placement(graph)
    batches = Tensors(images, batch)
    memory, start = Memory(), time.perf_counter()
    observers = calibrate(graph, plan.observed_tensors, batches, resolve_ranges(method).start)
    found = [observer.range() for observer in observers.values()]
    return {"seconds": time.perf_counter() - start, "bytes": memory.rise(), "tensors": len(found)}


class Tensors(Images):
    def __iter__(self) -> Iterator:  # type: ignore[type-arg]
        import torch

        yield from (torch.from_numpy(array) for array in super().__iter__())


def theirs(model: Path, method: str, images: int, batch: int) -> dict[str, float]:
    from onnxruntime.quantization import CalibrationMethod
    from onnxruntime.quantization.calibrate import CalibrationDataReader, create_calibrator

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(Images(images, batch))

        def get_next(self) -> dict[str, np.ndarray] | None:
            array = next(self.batches, None)
            return None if array is None else {name: array}

    import onnx

    name = onnx.load(str(model), load_external_data=False).graph.input[0].name
    kinds = {"minmax": CalibrationMethod.MinMax, "entropy": CalibrationMethod.Entropy}
    kind = kinds.get(method, CalibrationMethod.Percentile)
    with tempfile.TemporaryDirectory() as folder:
        augmented = Path(folder) / "augmented.onnx"
        memory, start = Memory(), time.perf_counter()
        calibrator = create_calibrator(model, None, augmented_model_path=str(augmented), calibrate_method=kind)
        calibrator.collect_data(Reader())
        found = calibrator.compute_data()
        return {
            "seconds": time.perf_counter() - start,
            "bytes": memory.rise(),
            "tensors": len(list(found.keys())),
        }


def export_default(folder: Path) -> Path:
    import torch

    import compress

    path = folder / "mobilenet_v2.onnx"
    module = compress.load("mobilenet_v2")
    compress.export(module, (torch.randn(2, 3, 224, 224),), path=path)
    return path


def measure(model: Path, who: str, method: str, images: int, batch: int) -> dict[str, float] | str:
    command = [sys.executable, __file__, "--model", str(model), "--worker", who, method, str(images), str(batch)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return f"failed: {(done.stderr.strip().splitlines() or [f'exit {done.returncode}'])[-1][:60]}"
    return json.loads(done.stdout.strip().splitlines()[-1])


def row(who: str, method: str, images: int, result: dict[str, float] | str) -> list[object]:
    if isinstance(result, str):
        return [who, method, images, result, "", ""]
    return [who, method, images, f"{result['seconds']:.1f}", f"{result['bytes'] / MIB:.0f}", result["tensors"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--many", type=int, default=512, help="0 to leave the second table out")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--worker", nargs=4, metavar=("WHO", "METHOD", "IMAGES", "BATCH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        who, method, images, batch = options.worker
        run = ours if who == "compress" else theirs
        print(json.dumps(run(options.model, method, int(images), int(batch))))
        return
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or export_default(Path(folder))
        headers = ["who", "range method", "images", "seconds", "memory MiB", "tensors"]
        rows, first = [], {}
        for method in options.methods:
            first[method] = measure(model, "compress", method, options.images, options.batch)
            rows.append(row("compress", method, options.images, first[method]))
            if method in THEIRS:
                result = measure(model, "onnxruntime", method, options.images, options.batch)
                rows.append(row("onnxruntime", method, options.images, result))
            print(tabulate(rows[-2:] if method in THEIRS else rows[-1:], headers), flush=True)
        if options.many:
            print()
            for method in options.methods:
                result = measure(model, "compress", method, options.many, options.batch)
                few = first[method]
                ratio = result["bytes"] / few["bytes"] if isinstance(result, dict) and isinstance(few, dict) else 0
                print(tabulate([[*row("compress", method, options.many, result), f"{ratio:.3f}"]], [*headers, "÷ few"]))


if __name__ == "__main__":
    main()
