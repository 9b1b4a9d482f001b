"""The options of quantization: frozen values, checked when made, passed whole from verb to verb."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict

from compress.errors import QuantizationError, nearest
from compress.quantization.placement import check_op_types
from compress.quantization.profiles import PROFILES
from compress.quantization.range_table import resolve_ranges
from compress.quantization.ranges.observer import RangeMethod
from compress.quantization.repairs.levels import Accuracy, resolve_accuracy
from compress.quantization.targets import Target, resolve_target, weight_limit


@dataclass(frozen=True)
class StaticOptions:
    """How `quantize_static` quantizes weights and activations; also what `quantize_within` and `quantize_tuned` start from.

    Raises:
        QuantizationError: unknown target, range method, operator type or bits.
    """

    target: str | Target = "auto"  # what it shall run on: auto (this machine), any, x86-vnni, x86-avx2, arm64, tensorrt
    ranges: str | RangeMethod = "minmax"  # minmax, percentile, entropy, mse, or options such as Percentile(99.9)
    per_channel: bool = True
    runtime: str = "onnxruntime"  # whose kernels the graph is made for: onnxruntime, openvino (`profiles.PROFILES`)
    weight_bits: int = 8  # 4 to 8; 4 are stored as 4, between them as 8
    layer_bits: Mapping[str, int] = field(default_factory=dict)  # node, module or pattern → other weight bits
    op_types: Collection[str] | None = None  # quantize only these operator types
    exclude: Collection[str] = ()  # nodes, modules, weights or patterns that stay float
    rewrites: Collection[str] | None = None  # exact rewrites to apply first (`rewrites.REWRITES`); None: all of them
    correct_bias: bool = True  # take the mean error of rounded weights off the biases (not where weights stay float)
    accuracy: str | Accuracy = "fast"  # repairs after calibration: fast (none), balanced, best (`repairs.levels`)
    fold_weights: bool = True  # False: weights stay float behind quantize/dequantize pairs, for training

    def __post_init__(self) -> None:
        for name in ("op_types", "exclude", "rewrites"):
            _as_tuple(self, name)
        object.__setattr__(self, "layer_bits", dict(self.layer_bits or {}))
        check_runtime(self.runtime)
        resolve_target(self.target)
        resolve_ranges(self.ranges)
        resolve_accuracy(self.accuracy)
        check_op_types(self.op_types)
        for bits in (self.weight_bits, *self.layer_bits.values()):
            weight_limit(bits)


class StaticFields(TypedDict, total=False):
    """The fields of `StaticOptions` as the keywords of a call, so that a type checker knows them too."""

    target: str | Target
    ranges: str | RangeMethod
    per_channel: bool
    runtime: str
    weight_bits: int
    layer_bits: Mapping[str, int]
    op_types: Collection[str] | None
    exclude: Collection[str]
    rewrites: Collection[str] | None
    correct_bias: bool
    accuracy: str | Accuracy
    fold_weights: bool


@dataclass(frozen=True)
class DynamicOptions:
    """How `quantize_dynamic` stores weights: activations are quantized as each input comes."""

    weight_type: str = "int8"  # int8; uint8, exact on every processor and up to a fifth slower; float16
    op_types: Collection[str] | None = None  # by ONNX or PyTorch name; None: all but convolutions
    exclude: Collection[str] = ()  # nodes, modules or weights to leave alone, by name or pattern
    target: str | Target = "auto"
    weight_bits: int = 8  # 4 to 8; 4 are stored as 4, between them as 8

    def __post_init__(self) -> None:
        for name in ("op_types", "exclude"):
            _as_tuple(self, name)
        if resolve_target(self.target).profile:
            raise QuantizationError(
                f"target {resolve_target(self.target).name} takes static ranges; use static quantization or QAT"
            )
        weight_limit(self.weight_bits)
        if self.weight_bits != 8 and self.weight_type != "int8":
            raise QuantizationError(
                f"weight_bits {self.weight_bits} goes with weight_type int8, not {self.weight_type}; leave one of them out"
            )


class DynamicFields(TypedDict, total=False):
    """The fields of `DynamicOptions` as the keywords of a call, so that a type checker knows them too."""

    weight_type: str
    op_types: Collection[str] | None
    exclude: Collection[str]
    target: str | Target
    weight_bits: int


def check_runtime(name: str) -> None:
    """Raise QuantizationError where no profile has that name."""
    known = [key for key, profile in PROFILES.items() if profile.runs_here]
    if name not in known:
        target = "; it is a target (target='tensorrt')" if name in PROFILES else ""
        raise QuantizationError(f"unknown runtime {name!r}; {nearest(name, known)}{target}")


@dataclass(frozen=True)
class WeightOnlyOptions:
    """How `quantize_weight_only` stores weights in blocks; activations stay in float."""

    bits: int = 4  # or 8
    block: int = 32  # weights that share a scale: a power of two from 16
    exclude: Collection[str] = ()  # nodes, modules or weights to leave alone, by name or pattern
    tables: bool = True  # embedding tables too, with one scale per row

    def __post_init__(self) -> None:
        _as_tuple(self, "exclude")
        if self.bits not in (4, 8):
            raise QuantizationError(f"bits must be 4 or 8, not {self.bits}")
        if self.block < 16 or self.block & (self.block - 1):
            raise QuantizationError(f"block must be a power of two from 16, not {self.block}; 32 is usual")


class WeightOnlyFields(TypedDict, total=False):
    """The fields of `WeightOnlyOptions` as the keywords of a call, so that a type checker knows them too."""

    bits: int
    block: int
    exclude: Collection[str]
    tables: bool


@dataclass(frozen=True)
class HalfOptions:
    """How `quantize_float16` makes a graph compute in half precision."""

    exclude: Collection[str] = ()  # nodes, modules or weights that stay in float32, by name or pattern

    def __post_init__(self) -> None:
        _as_tuple(self, "exclude")


class HalfFields(TypedDict, total=False):
    """The fields of `HalfOptions` as the keywords of a call, so that a type checker knows them too."""

    exclude: Collection[str]


def _as_tuple(options: Any, name: str) -> None:
    """One name, a list or a set becomes a tuple: frozen, in a fixed order."""
    value = getattr(options, name)
    if value is not None and not isinstance(value, tuple):
        names = (value,) if isinstance(value, str) else sorted(value) if isinstance(value, (set, frozenset)) else value
        object.__setattr__(options, name, tuple(names))
