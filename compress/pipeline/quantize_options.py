"""The options of quantization: one frozen dataclass whose field names are the command's and the recipe's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from compress.errors import InputError
from compress.options import check_fields, choice, option
from compress.quantization.range_table import RANGES
from compress.quantization.repairs.levels import LEVELS
from compress.runtimes.runtime import ALIASES, AUTO, DEFAULT, names
from compress.tables import listed
from compress.training.loss_table import LOSSES

if TYPE_CHECKING:  # a command's help must not wait for what quantization loads
    from compress.quantization.options import DynamicOptions, HalfOptions, StaticOptions, WeightOnlyOptions

METHODS = ("static", "dynamic", "weight-only", "float16", "qat")
NO_DATA = ("dynamic", "weight-only", "float16")  # methods that need no inputs
# Beside these an option changes nothing (`compress.options.option`).
TORCH = {"runtime": ("torch",)}
NOT_QAT = {"method": ("static", "dynamic", "weight-only", "float16")}
NOT_STATIC = ("dynamic", "weight-only", "float16")


@dataclass(frozen=True)
class QuantizeOptions:
    """How to quantize. The command's and the recipe's names are these; `None` leaves the method's own default."""

    method: str = choice("static", "how: static, dynamic, weight-only, float16 or qat", METHODS, metavar="NAME")
    runtime: str = choice(
        "onnx",
        "what shall run the file: onnxruntime (or onnx), openvino, auto (the faster here), or torch (deprecated there)",
        names(),
        metavar="NAME",
    )
    target: str = option("auto", "processor: auto, any, x86-vnni, x86-avx2, arm64, tensorrt", metavar="CPU")
    ranges: str = option(
        "minmax",
        f"how ranges are chosen: {listed(RANGES)}",
        idle={"method": NOT_STATIC, **TORCH},
        metavar="NAME",
    )
    accuracy: str = choice(
        "balanced",
        "repairs after calibration: fast (none), balanced (within 2 minutes), best (within 20)",
        LEVELS,
        metavar="NAME",
        idle={"method": (*NOT_STATIC, "qat"), **TORCH},
    )
    weight_type: str = option(
        "int8",
        "dynamic: int8, uint8, float16",
        idle={"method": ("static", "weight-only", "float16", "qat")},
        metavar="TYPE",
    )
    weight_bits: int = option(
        8,
        "bits of a weight, 4 to 8; 4 are stored as 4, which halves an int8 file",
        low=4,
        high=8,
        idle={"method": ("weight-only", "float16"), **TORCH},
    )
    layer_bits: tuple[str, ...] = option(
        (),
        "other bits for the weights of one layer or pattern: 'head*=8'",
        idle={"method": NOT_STATIC, **TORCH},
        metavar="LAYER=BITS",
    )
    bits: int = option(
        4,
        "weight-only: bits of a weight, 4 or 8",
        low=4,
        high=8,
        idle={"method": ("static", "dynamic", "float16", "qat"), **TORCH},
    )
    block: int = option(
        32,
        "weight-only: weights that share a scale",
        low=16,
        idle={"method": ("static", "dynamic", "float16", "qat"), **TORCH},
    )
    epochs: int | None = option(None, "QAT: epochs of training (default 2)", low=1, idle=NOT_QAT)
    lr: float | None = option(None, "QAT: learning rate (default 0.0001)", above=0, idle=NOT_QAT)
    loss: str = choice(
        "cross_entropy",
        "QAT: what is minimized beside the teacher's answers, or your module:function",
        LOSSES,
        or_own=True,
        idle=NOT_QAT,
    )
    device: str = option("auto", "QAT: trains on auto, cpu or cuda", idle={**NOT_QAT, **TORCH}, metavar="NAME")
    scales: str = option(
        "learned", "QAT: scales are learned, observed, fixed", idle={**NOT_QAT, **TORCH}, metavar="NAME"
    )
    per_channel: bool = option(
        True, "one weight scale for a whole layer", idle={"method": NOT_STATIC, **TORCH}, off="per-tensor"
    )
    op_types: tuple[str, ...] = option(
        (), "quantize these operators only", metavar="A,B", commas=True, idle={"method": ("weight-only", "float16")}
    )
    exclude: tuple[str, ...] = option((), "leave this node in float")
    tune_latency: bool | None = option(
        None,
        "time int8 and float forms here, keep the faster (default: with target auto and no --max-drop, where it takes "
        "less than a minute)",
        idle={"method": (*NOT_STATIC, "qat"), **TORCH},
    )

    def __post_init__(self) -> None:
        check_fields(self, "quantization")

    @property
    def kind(self) -> str:
        """What the weights of the file are called in a report."""
        if self.method == "weight-only":
            return f"int{self.bits}"
        if self.method == "float16":
            return "float16"
        if self.method == "dynamic" and self.weight_type != "int8":
            return self.weight_type
        return "int8" if self.weight_bits > 4 else "int4"

    def static(self) -> StaticOptions:
        """These options as static quantization and QAT take them."""
        from compress.quantization.options import StaticOptions

        return StaticOptions(
            target=self.target,
            ranges=self.ranges,
            accuracy=self.accuracy,
            per_channel=self.per_channel,
            weight_bits=self.weight_bits,
            layer_bits=bits_by_layer(self.layer_bits),
            op_types=self.op_types or None,
            exclude=self.exclude,
            runtime=DEFAULT if self.runtime in (AUTO, "torch") else ALIASES.get(self.runtime, self.runtime),
        )

    def weight_only(self) -> WeightOnlyOptions:
        """These options as weight-only quantization takes them."""
        from compress.quantization.options import WeightOnlyOptions

        return WeightOnlyOptions(bits=self.bits, block=self.block, exclude=self.exclude)

    def half(self) -> HalfOptions:
        """These options as float16 takes them."""
        from compress.quantization.options import HalfOptions

        return HalfOptions(exclude=self.exclude)

    def checked(self) -> None:
        """Refuse what the method cannot do before anything is loaded."""
        made = {"dynamic": self.dynamic, "weight-only": self.weight_only, "float16": self.half}
        made.get(self.method, self.static)()

    def dynamic(self) -> DynamicOptions:
        """These options as dynamic quantization takes them."""
        from compress.quantization.options import DynamicOptions

        return DynamicOptions(
            weight_type=self.weight_type,
            op_types=self.op_types or None,
            exclude=self.exclude,
            target=self.target,
            weight_bits=self.weight_bits,
        )


def bits_by_layer(entries: tuple[str, ...]) -> dict[str, int]:
    """`("head*=8",)` → `{"head*": 8}`.

    Raises:
        InputError: an entry that is not LAYER=BITS.
    """
    found = {}
    for entry in entries:
        layer, _, bits = entry.rpartition("=")
        if not layer or not bits.strip().isdigit():
            raise InputError(f"layer_bits takes LAYER=BITS, as in 'head*=8', got {entry!r}")
        found[layer.strip()] = int(bits)
    return found
