"""What int8 and four-bit files score beside float, on real checkpoints: ONNX Runtime's quantizer, NNCF, and ours at each level.

    python benchmarks/accuracy.py --models mobilenetv2 --ways float,ort,fast,balanced --limit 500
    python benchmarks/accuracy.py --models mobilenetv2,minilm --ways balanced --bits 4

Checkpoints and data of ../shared/data. Calibration samples come from the training (or calibration) part and are all that any
way sees; the test part scores. Points are top-1 in %, their interval is paired with float by sample; dB is signal to noise
of the scores; MB of the file. `nncf` runs where it is installed (no dependency of ours). The table is printed row by row.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from PIL import Image

import compress
from compress.batches import Batch
from compress.measures.intervals import paired_interval
from compress.quantization.calibration import all_rows
from compress.quantization.repairs.levels import LEVELS
from compress.quantization.repairs.passes import ENOUGH_DB
from compress.runtimes.onnxruntime import Session

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
BATCH = 32


@dataclass(frozen=True)
class Case:
    """A checkpoint with its calibration samples and its test part, all as the model takes them."""

    module: torch.nn.Module
    calibration: np.ndarray
    test: np.ndarray
    labels: np.ndarray


def shared_models() -> ModuleType:
    """The architectures beside the checkpoints."""
    spec = importlib.util.spec_from_file_location("shared_models", SHARED / "models.py")
    if spec is None or spec.loader is None or not (SHARED / "models.py").exists():
        sys.exit("needs ../shared/data with the checkpoints")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cifar(architecture: str, weights: str) -> Case:
    z = np.load(SHARED / "cifar10.npz")
    mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])

    def images(x: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(((x.astype(np.float32) / 255 - mean) / std).transpose(0, 3, 1, 2))

    module = compress.load(getattr(shared_models(), architecture)(), weights=str(SHARED / weights))
    return Case(module, images(z["x_train"][:256]), images(z["x_test"]), z["y_test"])


def mobilenetv2() -> Case:
    models = shared_models()
    parts, module = models.cifar128(), models.mobilenetv2_cifar128()
    loaded = compress.load(module, weights=str(SHARED / "mobilenetv2_cifar128.pt"))
    calibration = np.stack([parts["train"][i][0].numpy() for i in range(256)])
    test = [parts["test"][i] for i in range(len(parts["test"]))]
    return Case(loaded, calibration, np.stack([x.numpy() for x, _ in test]), np.array([y for _, y in test]))


def imagenet(weights: str, architecture: str | None, mean: float, std: float) -> Case:
    names = {name.split()[0]: index for index, name in enumerate((SHARED / "imagenet/classes.txt").open())}

    def images(part: str) -> tuple[np.ndarray, np.ndarray]:
        pixels, labels = [], []
        for path in sorted((SHARED / "imagenet" / part).glob("*/*")):
            image = Image.open(path).convert("RGB")
            left, top = (image.width - 224) // 2, (image.height - 224) // 2
            values = np.asarray(image.crop((left, top, left + 224, top + 224)), np.float32) / 255
            pixels.append(((values - np.float32(mean)) / np.float32(std)).transpose(2, 0, 1))
            labels.append(names[path.parent.name])
        return np.stack(pixels), np.array(labels)

    path = str(SHARED / weights)
    if architecture is None:
        module = compress.load(path)
    else:
        module = compress.load(getattr(shared_models(), architecture)(), weights=path)
    test, labels = images("test")
    return Case(module, images("calibration")[0], test, labels)


def minilm() -> Case:
    models = shared_models()
    parts = models.sst2()
    return Case(models.minilm_sst2(), parts["train"][0][:256], *parts["test"])


MODELS: dict[str, Callable[[], Case]] = {
    "resnet20": lambda: cifar("cifar_resnet20", "cifar_resnet20-12fca82f.th"),
    "resnet56": lambda: cifar("cifar_resnet56", "cifar_resnet56-4bfd9763.th"),
    "mobilenetv1": lambda: imagenet("mobilenetv1_0.75_224.pt", "mobilenetv1_075", 0.5, 0.5),
    "mobilenetv2": mobilenetv2,
    "efficientnet_lite0": lambda: imagenet("efficientnet_lite0.pt2", None, 127 / 255, 128 / 255),
    "minilm": minilm,
}


def batches(samples: np.ndarray) -> list[torch.Tensor]:
    return [torch.from_numpy(samples[i : i + BATCH]) for i in range(0, len(samples), BATCH)]


def quantized_by_ort(source: Path, samples: np.ndarray, target: Path) -> None:
    """ONNX Runtime's own quantizer with the settings that it recommends."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            name = Session(source, threads=1).input_names[0]
            self.left: Iterator[dict[str, np.ndarray]] = iter([{name: b.numpy()} for b in batches(samples)])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.left, None)

    prepared = target.with_suffix(".prepared.onnx")
    quant_pre_process(source, prepared)
    types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    quantize_static(prepared, target, Reader(), quant_format=QuantFormat.QDQ, per_channel=True, **types)


def quantized_by_nncf(source: Path, samples: np.ndarray, target: Path) -> None:
    """NNCF's ONNX path with its defaults; whoever measures it installs it beside."""
    import nncf
    import onnx

    name = Session(source, threads=1).input_names[0]
    data = nncf.Dataset([{name: samples[i : i + 1]} for i in range(len(samples))])
    onnx.save(nncf.quantize(onnx.load(source), data, subset_size=len(samples)), target)


def make(way: str, source: Path, case: Case, target: Path, given: argparse.Namespace) -> None:
    """Write the file that this way makes."""
    if way == "ort":
        quantized_by_ort(source, case.calibration, target)
    elif way == "nncf":
        quantized_by_nncf(source, case.calibration, target)
    else:
        level = LEVELS[way] if given.seconds is None else replace(LEVELS[way], seconds=given.seconds)
        if given.size is not None:
            most = int(given.size * source.stat().st_size)
            level = replace(level, max_bytes=most, mixed_db=ENOUGH_DB)
        options = {"ranges": "mse", "accuracy": level, "weight_bits": given.bits}
        step = compress.quantize_static(source, batches(case.calibration), threads=1, **options)
        for change in step.changes:
            if "pass" in change.values:
                print(f"    {'left out: ' if change.skipped else ''}{change.action}: {change.reason}", flush=True)
        compress.save_onnx(step.model, target)


def scores(path: Path, samples: np.ndarray) -> np.ndarray:
    return all_rows(Session(path, threads=1), Batch.of(torch.from_numpy(samples)), rows=BATCH)[0]


def row(name: str, way: str, path: Path, reference: np.ndarray, case: Case, seconds: tuple[float, float]) -> str:
    """One line of the table."""
    found = reference if way == "float" else scores(path, case.test[: len(reference)])
    labels = case.labels[: len(reference)]
    right, before = found.argmax(1) == labels, reference.argmax(1) == labels
    low, high = (
        100 * edge for edge in paired_interval(int((right & ~before).sum()), int((before & ~right).sum()), len(labels))
    )
    noise = float(np.square(reference.astype(np.float64) - found).sum())
    decibels = 10 * np.log10(float(np.square(reference.astype(np.float64)).sum()) / noise) if noise else float("inf")
    change = 100 * (right.mean() - before.mean())
    return (
        f"| {name} | {way} | {100 * right.mean():.2f} | {change:+.2f} [{low:+.2f}, {high:+.2f}] | {decibels:.1f} "
        f"| {path.stat().st_size / 1e6:.2f} | {seconds[0]:.0f} | {seconds[1]:.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--ways", default="float,ort,fast,balanced")
    parser.add_argument("--bits", type=int, default=8, help="of weights, for ours")
    parser.add_argument(
        "--seconds", type=float, help="for repairs; default: the level's own, which a busy machine runs out of"
    )
    parser.add_argument("--size", type=float, help="of the float file, that mixed widths may fill, as --max-size does")
    parser.add_argument("--limit", type=int, help="test samples")
    arguments = parser.parse_args()
    print("| model | way | top-1 % | points to float [95 %] | dB | MB | s | CPU s |\n|---|---|---|---|---|---|---|---|")
    for name in arguments.models.split(","):
        case = MODELS[name]()
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "float.onnx"
            example = torch.from_numpy(case.calibration[:2])
            compress.save_onnx(compress.export(case.module, (example,)).model, source)
            reference = scores(source, case.test[: arguments.limit])
            for way in arguments.ways.split(","):
                target, start = Path(folder) / f"{way}.onnx", (time.monotonic(), time.process_time())
                if way == "float":
                    target = source
                else:
                    make(way, source, case, target, arguments)
                took = time.monotonic() - start[0], time.process_time() - start[1]
                print(row(name, way, target, reference, case, took), flush=True)


if __name__ == "__main__":
    main()
