"""The processors that int8 files are made for, with what each needs to be right on it."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

from compress.errors import QuantizationError, nearest
from compress.quantization.arithmetic import Grid, grid_for_range, symmetric_grid

LIMITS = {8: 127, 7: 64, 6: 31, 5: 15, 4: 7}


@dataclass(frozen=True)
class Target:
    """What a processor's int8 kernels ask of a file.

    `activation_signed`: arm64 computes s8·s8; on x86 only u8·s8 is fast.
    `weight_bits`: 7 where the kernel adds two u8·s8 products in 16 saturating bits (`vpmaddubsw`,
    x86 without VNNI): 255·127·2 overflows, 255·64·2 does not, so weights in −64 … 64 are safe there.
    Static quantization keeps most of the eighth bit (`pairs.py`).
    `symmetric`: zero points are 0, of activations too. `float_bias`: biases stay float, not int32 behind a pair.
    `signed_kernels`: some of its processors (AMX) multiply s8·s8 as fast as u8·s8; runtimes that know use it.
    `profile`: whose placement of pairs it wants where that runtime is not one that runs here (`profiles.PROFILES`).
    """

    name: str
    activation_signed: bool
    weight_bits: int
    description: str
    symmetric: bool = False
    float_bias: bool = False
    profile: str = ""
    signed_kernels: bool = False

    def grid(self, low: float, high: float) -> Grid:
        """The grid of an activation over [low, high] and 0."""
        if self.symmetric:
            return symmetric_grid(low, high)
        return grid_for_range(low, high, signed=self.activation_signed)

    @property
    def pairs_saturate(self) -> bool:
        return self.weight_bits < 8


TARGETS = {
    "any": Target("any", False, 7, "one file that is right on every processor; fastest on x86"),
    "x86-vnni": Target("x86-vnni", False, 8, "x86 with VNNI or AMX (Ice Lake, Zen 4 and later)", signed_kernels=True),
    "x86-avx2": Target("x86-avx2", False, 7, "x86 without VNNI, whose u8·s8 pairs saturate"),
    "arm64": Target("arm64", True, 8, "64-bit ARM"),
    "tensorrt": Target(
        "tensorrt",
        activation_signed=True,
        weight_bits=8,
        description="TensorRT: symmetric int8, zero points 0, float biases; right but slow in ONNX Runtime",
        symmetric=True,
        float_bias=True,
        profile="tensorrt",
    ),
}
# PyTorch's engine names. fbgemm is "x86", whatever its generation, so it takes the one that is right on all of them.
ALIASES = {"fbgemm": "x86-avx2", "x86": "x86-avx2", "qnnpack": "arm64", "onednn": "x86-vnni"}


def resolve_target(name: str | Target = "auto") -> Target:
    """Return the target of that name; `auto` reads this machine's processor.

    `fbgemm` and `x86` take this machine's x86 variant where it is one, else `x86-avx2`.

    Raises:
        QuantizationError: no such target.
    """
    if isinstance(name, Target):
        return name
    if name == "auto":
        return TARGETS[detect()]
    if name in ("fbgemm", "x86"):
        here = detect()
        return TARGETS[here if here.startswith("x86") else ALIASES[name]]
    name = ALIASES.get(name, name)
    if name not in TARGETS:
        raise QuantizationError(f"unknown target {name!r}; {nearest(name, ['auto', *TARGETS, *ALIASES])}")
    return TARGETS[name]


def detect() -> str:
    """The name of the target that this machine is; `any` where it is not known."""
    machine = platform.machine().lower()
    if machine in ("aarch64", "arm64"):
        return "arm64"
    if machine not in ("x86_64", "amd64"):
        return "any"
    flags = cpu_flags()
    if not flags:
        return "any"
    return "x86-vnni" if flags & {"avx512_vnni", "avx_vnni", "amx_int8"} else "x86-avx2"


def cpu_flags(source: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """The feature names in Linux's cpuinfo; torch's answer elsewhere; empty where neither knows."""
    try:
        text = source.read_text()
    except OSError:
        return _flags_from_torch()
    for line in text.splitlines():
        if line.startswith(("flags", "Features")):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


def _flags_from_torch() -> frozenset[str]:
    import torch

    known = {
        "avx2": "_is_avx2_supported",
        "avx512_vnni": "_is_avx512_vnni_supported",
        "amx_int8": "_is_amx_tile_supported",
    }
    return frozenset(flag for flag, query in known.items() if getattr(torch.cpu, query, lambda: False)())


def weight_limit(bits: int) -> int:
    """The largest magnitude of a weight's code: symmetric, so that zero is exact. 8 → 127, 7 → 64.

    Raises:
        QuantizationError: bits not in 4 … 8.
    """
    if bits not in LIMITS:
        raise QuantizationError(f"weight_bits must be 4 to 8, not {bits}")
    return LIMITS[bits]
