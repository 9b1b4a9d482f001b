"""The table of README: what `compress.quantize` makes of real checkpoints with nothing set, measured on the files that ship.

    python benchmarks/headline.py > docs/headline.md
    python scripts/picture.py docs/measured.md docs/measured.svg

Checkpoints and data of ../shared/data (see benchmarks/accuracy.py). One thread; float and int8 take turns, and the
speed-up is the ratio of the medians of their runs, so it wants a machine without other work. One row a model, printed as it is done.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import TensorDataset

import compress
from compress.batches import Batch
from compress.measures import deciding
from compress.measures.figure import difference
from compress.runtimes.onnxruntime import Session

sys.path.insert(0, str(Path(__file__).parent))
from accuracy import MODELS, Case

TITLES = {
    "resnet20": "ResNet-20, CIFAR-10",
    "resnet56": "ResNet-56, CIFAR-10",
    "mobilenetv1": "MobileNetV1 0.75, ImageNet",
    "mobilenetv2": "MobileNetV2, CIFAR-10",
    "efficientnet_lite0": "EfficientNet-Lite0, ImageNet",
    "minilm": "MiniLM-L6, SST-2",
}
ROUNDS = 300
HEAD = ("model", "float", "int8", "points [95 %]", "size", "speed-up", "made in")


def medians_of(files: dict[str, Path], sample: np.ndarray) -> dict[str, float]:
    """Median seconds of a run of each file, of ROUNDS runs in turns behind a tenth as many to warm up."""
    sessions = {name: Session(path, threads=1) for name, path in files.items()}
    fed = Batch.of(torch.from_numpy(sample))
    taken: dict[str, list[float]] = {name: [] for name in files}
    for turn in range(-(ROUNDS // 10), ROUNDS):
        for name, session in sessions.items() if turn % 2 else reversed(sessions.items()):
            start = time.perf_counter()
            session.run(fed)
            if turn >= 0:
                taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def row(name: str, case: Case) -> str:
    """Quantize one checkpoint and measure both files."""
    targets = torch.from_numpy(case.labels)
    data = (
        TensorDataset(torch.from_numpy(case.calibration), torch.zeros(len(case.calibration), dtype=targets.dtype)),
        TensorDataset(torch.from_numpy(case.test), targets),
    )
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "float.onnx"
        compress.save_onnx(compress.export(case.module, (torch.from_numpy(case.calibration[:2]),)).model, source)
        start = time.monotonic()
        settings = compress.Settings(threads=1, quiet=True)
        report = compress.quantize(source, data, output=Path(folder) / "int8", settings=settings)
        seconds = time.monotonic() - start
        files = {"float": source, "int8": Path(folder) / "int8" / "model.onnx"}
        median = medians_of(files, case.test[:1])
    base, made = report.base, report.deliverable
    figure = None if made is None else deciding.deciding(made)
    if made is None or figure is None or figure.change_interval is None:
        raise SystemExit(f"{name}: {report.text()}")
    low, high = (100 * edge for edge in figure.change_interval)
    moved = difference(figure.value - deciding.deciding(base).value, "%")  # type: ignore[union-attr]
    size = f"{base.size_bytes / 1e6:.2f} → {made.size_bytes / 1e6:.2f} MB"  # type: ignore[operator]
    cells = (
        TITLES[name],
        deciding.value(base),
        deciding.value(made),
        f"{moved} [{low:+.2f}, {high:+.2f}]".replace("-", "−"),
        size,
        f"{median['float'] / median['int8']:.2f}×",
        f"{seconds:.0f} s",
    )
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS))
    print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}", flush=True)
    for name in parser.parse_args().models.split(","):
        print(row(name, MODELS[name]()), flush=True)


if __name__ == "__main__":
    main()
