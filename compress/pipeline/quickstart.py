"""The job behind `compress quickstart`: train a small network on digits, then compress and measure it."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress import state
from compress.counting import counted
from compress.graph.exporting import export
from compress.pipeline.closing import closing_report
from compress.pipeline.inputs import DataSource, ModelSource, Opened, Settings, open_inputs
from compress.pipeline.job import Delivery, Job
from compress.pipeline.outputs import Output, output_folder
from compress.reporting.report import Report
from compress.taking import takes


class Residual(nn.Module):
    """Two convolutions beside a shortcut (He et al. 2016)."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True)
        )
        self.second = nn.Sequential(nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out))
        same = stride == 1 and channels == out
        self.shortcut = (
            nn.Identity()
            if same
            else nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(self.first(x)) + self.shortcut(x))


class DigitNet(nn.Module):
    """A residual network of half a million parameters: (N, 1, 28, 28) → (N, 10)."""

    def __init__(self, widths: tuple[int, int, int, int] = (32, 64, 96, 128)) -> None:
        super().__init__()
        first = widths[0]
        self.stem = nn.Sequential(
            nn.Conv2d(1, first, 3, 1, 1, bias=False), nn.BatchNorm2d(first), nn.ReLU(inplace=True)
        )
        self.blocks = nn.Sequential(*(Residual(before, after, 2) for before, after in itertools.pairwise(widths)))
        self.head = nn.Linear(widths[-1], 10)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.blocks(self.stem(x)).mean((2, 3)))
        return scores


def build() -> nn.Module:
    """The factory, so that the folder's weights load again: `--weights weights.pt` on compress.pipeline.quickstart:build."""
    return DigitNet()


@takes()
def quickstart(
    *,
    output: Output | str | Path,
    epochs: int = 3,
    data: DataSource | Any = "mnist5k",
    settings: Settings | None = None,
) -> Report:
    """Train, fuse, export, quantize dynamically and statically; leave every file and the report in one folder.

    Raises:
        CompressError: one line for whatever is missing.
    """
    from compress.fusion.batchnorm import fuse
    from compress.quantization.dynamic import quantize_dynamic
    from compress.quantization.static import quantize_static

    settings, output = settings or Settings(), Output.of(output)
    output.check_folder()
    with state.seeded(settings.seed):
        network = DigitNet()
    opened = open_inputs(ModelSource(network), data, settings)
    with output_folder(output) as folder, state.threads(settings.threads):
        trained, seconds = _train(network, opened, epochs, settings)
        folder.save_module(trained, opened.inputs)
        fused = fuse(trained, opened.inputs)
        exported = export(fused.model, opened.inputs)
        dynamic = quantize_dynamic(exported.model)
        static = quantize_static(exported.model, opened.calibration())
        targets = {
            "float32": folder.save_graph(exported.model, "float.onnx"),
            "int8 dynamic": folder.save_graph(dynamic.model, "dynamic.onnx"),
            "int8 static": folder.save_graph(static.model),
        }
        made = Delivery(
            targets,
            "Quickstart: a residual network on MNIST digits",
            steps=[fused, exported, dynamic, static],
            notes=[f"trained for {counted(epochs, 'epoch')} in {seconds:.0f} s on {len(opened.data.train)} digits"],  # type: ignore[union-attr, arg-type]  # quickstart has data
            files={"model": str(folder.onnx), "report": str(folder.path / "report.html")},
            shipped=folder.onnx,
        )
        return folder.save_report(closing_report(Job(opened, settings, output), made))


def _train(network: nn.Module, opened: Opened, epochs: int, settings: Settings) -> tuple[nn.Module, float]:
    from compress.training.loop import fit
    from compress.training.options import TrainOptions

    options = TrainOptions(epochs=epochs, batch_size=64, lr=0.05, weight_decay=5e-4, nesterov=True, seed=settings.seed)
    start = time.perf_counter()
    result = fit(network, opened.data, options)
    return result.module, time.perf_counter() - start
