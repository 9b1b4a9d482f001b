"""The options of quantization: one frozen dataclass whose field names are the command's and the recipe's."""

from __future__ import annotations

from dataclasses import dataclass

from compress.errors import InputError
from compress.options import check_fields, choice, option

METHODS = ("static", "dynamic", "qat")
RUNTIMES = ("onnx", "torch")


@dataclass(frozen=True)
class QuantizeOptions:
    """How to quantize. The command's and the recipe's names are these; `None` leaves the method's own default."""

    method: str = choice("static", "how: static, dynamic or qat", METHODS, metavar="NAME")
    runtime: str = choice("onnx", "what runs the file: onnx, or torch (deprecated there)", RUNTIMES, metavar="NAME")
    target: str = option("auto", "processor: auto, any, x86-vnni, x86-avx2, arm64", metavar="CPU")
    ranges: str = option("minmax", "how ranges are chosen: minmax, percentile, entropy, mse", metavar="NAME")
    weight_type: str = option("int8", "dynamic: int8, uint8, float16", metavar="TYPE")
    weight_bits: int = option(8, "bits of a weight; fewer than 8 are simulated in int8", low=4, high=8)
    epochs: int | None = option(None, "QAT: epochs of training (default 2)", low=1)
    lr: float | None = option(None, "QAT: learning rate (default 0.0001)", above=0)
    scales: str = option("learned", "QAT: scales are learned, observed, fixed", metavar="NAME")
    per_channel: bool = option(True, "one weight scale for a whole layer", off="per-tensor")
    op_types: tuple[str, ...] = option((), "quantize these operators only", metavar="A,B", commas=True)
    exclude: tuple[str, ...] = option((), "leave this node in float")
    tune_latency: bool | None = option(
        None,
        "time int8 and float forms here, keep the faster (default: with target auto and no --max-drop, where it takes "
        "less than a minute)",
    )

    def __post_init__(self) -> None:
        check_fields(self, "quantization")
        if self.tune_latency and self.method != "static":
            raise InputError(f"--tune-latency chooses among static int8 forms; method {self.method!r} has none")
