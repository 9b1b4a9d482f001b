"""Every layer and activation of torch.nn that torch.export takes: export, static int8, QAT, pruning, a figure or the reason in each cell.

    python benchmarks/layers.py [NAME…] [--markdown]

Each stands in a tiny network with weights before and behind it. Export: dB between PyTorch and ONNX Runtime (ratio of signal to
difference); static: dB of the int8 file to the float network; QAT: dB of the converted file after no training; prune: share of the
parameters that go with half of the channels, held to the zeroed original. What a refusal says stands in the cell.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import compress
from compress.batches import flat_outputs
from compress.runtimes.onnxruntime import Session

METHODS = ("export", "static", "qat", "prune")
SAMPLES, CHANNELS = 8, 8


@dataclass(frozen=True)
class Case:
    """One layer between two with weights, on inputs of `shape` (without the batch)."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...] = (3, 10, 10)


class Network(nn.Module):
    """first → layer → last; the layer's first output where it has several."""

    def __init__(self, layer: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        convolutions = {2: nn.Conv1d, 3: nn.Conv2d, 4: nn.Conv3d}
        if len(shape) in convolutions:
            kind: Any = convolutions[len(shape)]
            self.first, self.layer, self.last = kind(shape[0], CHANNELS, 3, padding=1), layer, kind(CHANNELS, 4, 1)
            with torch.no_grad():
                made = self._middle(torch.zeros(2, *shape))
            if made.dim() != len(shape) + 1 or made.shape[1] != CHANNELS:
                self.last = nn.Linear(made.shape[-1], 4) if made.dim() != len(shape) + 1 else kind(made.shape[1], 4, 1)
        else:
            self.first, self.layer = nn.Linear(shape[-1], CHANNELS), layer
            with torch.no_grad():
                self.last = nn.Linear(self._middle(torch.zeros(2, *shape)).shape[-1], 4)

    def _middle(self, x: Tensor) -> Tensor:
        y = self.layer(self.first(x))
        return y[0] if isinstance(y, tuple) else y

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self._middle(x))


class Tokens(nn.Module):
    """A sequence through a layer of its own width: recurrent layers, attention, embeddings."""

    def __init__(self, layer: nn.Module, *, width: int, call: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.layer, self.last, self.call = nn.Linear(width, CHANNELS), layer, nn.LazyLinear(4), call
        with torch.no_grad():
            self(torch.zeros(2, 6, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.call(self.layer, self.first(x)))


def sequence(make: Callable[[], nn.Module], call: Callable[[nn.Module, Tensor], Tensor]) -> Case:
    return Case(lambda: Tokens(make(), width=6, call=call), (6, 6))


def _activations() -> dict[str, Case]:
    names = [
        "CELU",
        "ELU",
        "GELU",
        "GLU",
        "Hardshrink",
        "Hardsigmoid",
        "Hardswish",
        "Hardtanh",
        "LeakyReLU",
        "LogSigmoid",
        "Mish",
        "PReLU",
        "RReLU",
        "ReLU",
        "ReLU6",
        "SELU",
        "SiLU",
        "Sigmoid",
        "Softplus",
        "Softshrink",
        "Softsign",
        "Tanh",
        "Tanhshrink",
        "Identity",
    ]
    found = {name: Case(getattr(nn, name)) for name in names}
    found["GLU"] = Case(lambda: nn.GLU(1))
    found["Threshold"] = Case(lambda: nn.Threshold(0.1, 0.0))
    found |= {name: Case(lambda name=name: getattr(nn, name)(1)) for name in ("LogSoftmax", "Softmax", "Softmin")}
    found["Softmax2d"] = Case(nn.Softmax2d)
    return found


def _pools() -> dict[str, Case]:
    found = {}
    for d, shape in ((1, (3, 11)), (2, (3, 11, 10)), (3, (3, 6, 5, 6))):
        for kind in ("AvgPool", "MaxPool"):
            found[f"{kind}{d}d"] = Case(lambda kind=kind, d=d: getattr(nn, f"{kind}{d}d")(2), shape)
            name = f"Adaptive{kind}{d}d"
            found[name] = Case(lambda name=name: getattr(nn, name)(4), shape)
            found[f"{name}, to 1"] = Case(lambda name=name: getattr(nn, name)(1), shape)
        found[f"LPPool{d}d"] = Case(lambda d=d: getattr(nn, f"LPPool{d}d")(2, 2), shape)
    found["FractionalMaxPool2d"] = Case(lambda: nn.FractionalMaxPool2d(2, output_size=4))
    found["FractionalMaxPool3d"] = Case(lambda: nn.FractionalMaxPool3d(2, output_size=3), (3, 6, 6, 6))
    return found


def _normalizations() -> dict[str, Case]:
    found = {}
    for d, shape in ((1, (3, 10)), (2, (3, 10, 10)), (3, (3, 4, 5, 6))):
        for kind in ("BatchNorm", "InstanceNorm"):
            found[f"{kind}{d}d"] = Case(lambda kind=kind, d=d: getattr(nn, f"{kind}{d}d")(CHANNELS, affine=True), shape)
    found["GroupNorm"] = Case(lambda: nn.GroupNorm(2, CHANNELS))
    found["LayerNorm"] = Case(lambda: nn.LayerNorm(CHANNELS), (12,))
    found["RMSNorm"] = Case(lambda: nn.RMSNorm(CHANNELS), (12,))
    found["LocalResponseNorm"] = Case(lambda: nn.LocalResponseNorm(3))
    found["CrossMapLRN2d"] = Case(lambda: nn.CrossMapLRN2d(3))
    return found


def _weights() -> dict[str, Case]:
    found = {"Linear": Case(lambda: nn.Linear(CHANNELS, 6), (12,))}
    for d, shape in ((1, (3, 10)), (2, (3, 10, 10)), (3, (3, 4, 5, 6))):
        for kind in ("Conv", "ConvTranspose"):
            found[f"{kind}{d}d"] = Case(
                lambda kind=kind, d=d: getattr(nn, f"{kind}{d}d")(CHANNELS, CHANNELS, 3, stride=2), shape
            )
    found["Bilinear"] = sequence(lambda: nn.Bilinear(CHANNELS, CHANNELS, 5), lambda m, x: m(x, x))
    return found


def _sequences() -> dict[str, Case]:
    found = {
        name: sequence(lambda name=name: getattr(nn, name)(CHANNELS, 5, batch_first=True), lambda m, x: m(x)[0])
        for name in ("RNN", "LSTM", "GRU")
    }
    found["RNNCell"] = sequence(lambda: nn.RNNCell(CHANNELS, 5), lambda m, x: m(x[:, 0]))
    found["LSTMCell"] = sequence(lambda: nn.LSTMCell(CHANNELS, 5), lambda m, x: m(x[:, 0])[0])
    found["GRUCell"] = sequence(lambda: nn.GRUCell(CHANNELS, 5), lambda m, x: m(x[:, 0]))
    found["MultiheadAttention"] = sequence(
        lambda: nn.MultiheadAttention(CHANNELS, 2, batch_first=True), lambda m, x: m(x, x, x, need_weights=False)[0]
    )
    found["TransformerEncoderLayer"] = sequence(
        lambda: nn.TransformerEncoderLayer(CHANNELS, 2, 16, batch_first=True), lambda m, x: m(x)
    )
    found["TransformerDecoderLayer"] = sequence(
        lambda: nn.TransformerDecoderLayer(CHANNELS, 2, 16, batch_first=True), lambda m, x: m(x, x)
    )
    found["Embedding"] = sequence(
        lambda: nn.Embedding(20, CHANNELS), lambda m, x: x + m((x.abs() * 5).long().clamp(0, 19)).mean(-2)
    )
    found["EmbeddingBag"] = sequence(
        # indices that no rounding of x can change: another row is another answer, not noise
        lambda: nn.EmbeddingBag(20, CHANNELS),
        lambda m, x: x[:, 0] + m((x[:, 1] * 0).long() + torch.arange(CHANNELS)),
    )
    return found


def _movements() -> dict[str, Case]:
    found = {}
    for d, shape in ((1, (3, 10)), (2, (3, 10, 10)), (3, (3, 4, 5, 6))):
        for kind in ("Constant", "Reflection", "Replication", "Zero", "Circular"):
            name = f"{kind}Pad{d}d"
            extra = (0.5,) if kind == "Constant" else ()
            found[name] = Case(lambda name=name, extra=extra: getattr(nn, name)(1, *extra), shape)
    found["Flatten"] = Case(nn.Flatten)
    found["Unflatten"] = Case(lambda: nn.Unflatten(1, (CHANNELS, 1)), (12,))
    found["PixelShuffle"] = Case(lambda: nn.PixelShuffle(2))
    found["PixelUnshuffle"] = Case(lambda: nn.PixelUnshuffle(2))
    found["ChannelShuffle"] = Case(lambda: nn.ChannelShuffle(2))
    for mode in ("nearest", "bilinear", "bicubic"):
        found[f"Upsample, {mode}"] = Case(lambda mode=mode: nn.Upsample(scale_factor=2, mode=mode))
    found["UpsamplingNearest2d"] = Case(lambda: nn.UpsamplingNearest2d(scale_factor=2))
    found["UpsamplingBilinear2d"] = Case(lambda: nn.UpsamplingBilinear2d(scale_factor=2))
    found["Unfold"] = Case(lambda: nn.Unfold(2))
    found["Fold"] = Case(lambda: nn.Sequential(nn.Unfold(2, stride=2), nn.Fold((10, 10), 2, stride=2)))
    for kind in ("Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout", "FeatureAlphaDropout"):
        shape = {"Dropout1d": (3, 10), "Dropout3d": (3, 4, 5, 6)}.get(kind, (3, 10, 10))
        found[kind] = Case(getattr(nn, kind), shape)
    return found


CASES: dict[str, Case] = {
    **_activations(), **_pools(), **_normalizations(), **_weights(), **_sequences(), **_movements()
}  # fmt: skip


def row(name: str, methods: tuple[str, ...] = METHODS) -> dict[str, str | float]:
    """One line of the table: for each method its figure, or the reason as text."""
    case = CASES[name]
    torch.manual_seed(0)
    layer = case.make()
    module = (layer if isinstance(layer, Tokens) else Network(layer, case.shape)).eval()
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.running_var is not None:
            part.running_var.uniform_(0.5, 2)
    x = torch.randn(SAMPLES, *case.shape)
    cells: dict[str, str | float] = {}
    for method in methods:
        try:
            cells[method] = CELLS[method](module, x)
        except compress.CompressError as error:
            cells[method] = str(error)
        except Exception as error:  # ours to mend: shown as what it is
            cells[method] = f"FAILS with {type(error).__name__}: {' '.join(str(error).split())[:120]}"
    return cells


def decibels(expected: np.ndarray, got: np.ndarray) -> float:
    noise = float(np.square(expected.astype(np.float64) - got).sum())
    return 10 * float(np.log10(max(float(np.square(expected.astype(np.float64)).sum()), 1e-30) / max(noise, 1e-20)))


def _reference(module: nn.Module, x: Tensor) -> np.ndarray:
    with torch.no_grad():
        return flat_outputs(module(x))[0].numpy()


def _export(module: nn.Module, x: Tensor) -> float:
    return decibels(_reference(module, x), Session(compress.export(module, x[:2]).model, threads=1).run(x)[0])


def _static(module: nn.Module, x: Tensor) -> float:
    step = compress.quantize_static(module, [x], threads=1)
    return decibels(_reference(module, x), Session(step.model, threads=1).run(x)[0])


def _qat(module: nn.Module, x: Tensor) -> float:
    step = compress.convert(compress.prepare_qat(module, [x]))
    return decibels(_reference(module, x), Session(step.model, threads=1).run(x)[0])


def _prune(module: nn.Module, x: Tensor) -> float:
    step = compress.prune(module, x[:2])
    count = [sum(p.numel() for p in m.parameters()) for m in (module, step.model)]
    if count[0] == count[1]:
        reasons = [change.reason for change in step.changes if change.skipped and change.reason]
        return next(iter(dict.fromkeys(reasons)), "nothing can be removed")  # type: ignore[return-value]
    return round(100 * (1 - count[1] / count[0]), 1)


CELLS: dict[str, Callable[[nn.Module, Tensor], float]] = {
    "export": _export, "static": _static, "qat": _qat, "prune": _prune
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="layers; default: all")
    parser.add_argument("--markdown", action="store_true")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    print("| layer | export, dB | static, dB | QAT, dB | prune, % of parameters gone |\n|---|---|---|---|---|")
    for name in arguments.names or CASES:
        cells = row(name)
        print(
            "|",
            name,
            "|",
            " | ".join(f"{v:.1f}" if isinstance(v, float) else v for v in cells.values()),
            "|",
            flush=True,
        )


if __name__ == "__main__":
    main()
