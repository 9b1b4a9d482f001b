"""PyTorch's own int8 (dynamic, static, QAT on two engines) beside ONNX Runtime's, in one table.

    python benchmarks/torch_native.py [--engines fbgemm qnnpack] [--epochs 1] [--images 5000] [--rounds 100] [--output FILE.md]

CIFAR-10 ResNet-20 of ../shared/data: size of the file that ships, latency of one image (one thread, all models
interleaved round by round), top-1 on the 2,000 test images. QAT trains on the first `--images` of the training part for `--epochs`.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

import compress
from compress.evaluation.runners import Target
from compress.loading.torchscript import save_torchscript
from compress.pipeline.closing import measure
from compress.pipeline.inputs import DataSource, ModelSource, Opened, Settings, open_inputs
from compress.quantization import torch_native
from compress.quantization.dynamic import quantize_dynamic
from compress.quantization.qat import convert, prepare_qat
from compress.quantization.static import quantize_static
from compress.reporting.report import Report
from compress.training.options import TrainOptions

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
LEARNING_RATE = 1e-3


def opened() -> Opened:
    model = ModelSource(f"{DATA / 'models.py'}:cifar_resnet20", weights=str(DATA / "cifar_resnet20-12fca82f.th"))
    data = DataSource(str(DATA / "cifar10.npz"), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    return open_inputs(model, data, Settings(threads=1, quiet=True))


def trained(module: nn.Module, source: Opened, images: int, epochs: int, **options: Any) -> nn.Module:
    """The module after QAT, taught by the float model as in `--method qat`; the last weights are those that ship."""
    loaders = source.loader("train", batch_size=64, shuffle=True, limit=images), None
    settings = TrainOptions(epochs=epochs, lr=LEARNING_RATE, batch_size=64)
    return compress.fit(module, loaders, settings, teacher=source.model, **options).module


def by_torch(source: Opened, engine: str, images: int, epochs: int, folder: Path) -> dict[str, Target]:
    model, inputs, files = source.model, source.inputs, {}
    steps = {
        "dynamic": torch_native.quantize_dynamic(model, engine=engine),
        "static": torch_native.quantize_static(model, source.calibration(), engine=engine),
    }
    prepared = torch_native.prepare_qat(model, inputs, engine=engine)
    half = max(1, epochs // 2)

    def freeze(run: object) -> None:
        if run.epoch >= half:  # type: ignore[attr-defined]
            torch_native.freeze_module(run.module)  # type: ignore[attr-defined]

    after = trained(prepared.module, source, images, epochs, before_epoch=[freeze])
    steps["QAT"] = torch_native.convert(dataclasses.replace(prepared, module=after), inputs)
    for name, step in steps.items():
        files[f"torch {name} {engine}"] = save_torchscript(step.model, folder / f"{name}-{engine}.torchscript", inputs)
    return files


def by_onnx(source: Opened, images: int, epochs: int, folder: Path) -> dict[str, Target]:
    graph = compress.export(source.model, source.inputs).model
    prepared = prepare_qat(graph, source.calibration())
    graphs = {
        "float32": graph,
        "dynamic": quantize_dynamic(graph).model,
        "static": quantize_static(graph, source.calibration()).model,
        "QAT": convert(trained(prepared, source, images, epochs), source.calibration()).model,
    }
    return {f"ONNX {name}": compress.save_onnx(each, folder / f"{name}.onnx") for name, each in graphs.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="+", default=["fbgemm", "qnnpack"])
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    if not DATA.is_dir():
        sys.exit(f"skipped: the checkpoints are not in {DATA.parent.name}/{DATA.name} beside the checkout")
    torch.set_num_threads(1)
    source = opened()
    images, epochs = arguments.images, arguments.epochs
    with tempfile.TemporaryDirectory() as scratch:
        targets = by_onnx(source, images, epochs, Path(scratch))
        targets = {"ONNX float32": targets.pop("ONNX float32"), "torch float32": source.model, **targets}
        for engine in arguments.engines:
            targets |= by_torch(source, engine, images, epochs, Path(scratch))
        rows = measure(
            targets, inputs=source.inputs, test=source.test, threads=1, rounds=arguments.rounds, max_seconds=30
        )
        report = Report(rows=rows, title="int8 by PyTorch, by ONNX Runtime", baseline="ONNX float32")
        print(report.table())
        if arguments.output:
            report.write(arguments.output)


if __name__ == "__main__":
    main()
