"""What each runtime wants of a quantized graph: where pairs stand, which rewrites help. A new runtime is one line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from compress.quantization.placement import Plan, plan_placement
from compress.quantization.placement_openvino import plan_for_openvino
from compress.quantization.rewrites import REWRITES


@dataclass(frozen=True)
class Profile:
    """How static quantization serves one runtime."""

    plan: Callable[..., Plan]  # (graph, op_types=…, exclude=…) → where it is quantized
    rewrites: tuple[str, ...]  # that help this runtime's int8 kernels


PROFILES: Mapping[str, Profile] = {
    "onnxruntime": Profile(plan_placement, tuple(REWRITES)),
    # OpenVINO fuses SiLU, hard-swish, GELU and normalization as they stand; pieces of them it does not know.
    "openvino": Profile(plan_for_openvino, ()),
}
