"""What each runtime wants of a quantized graph: where pairs stand, which rewrites help. A new runtime is one line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from compress.quantization.placement import Plan, plan_placement
from compress.quantization.placement_openvino import plan_for_openvino, plan_for_tensorrt


@dataclass(frozen=True)
class Profile:
    """How static quantization serves one runtime."""

    plan: Callable[..., Plan]  # (graph, op_types=…, exclude=…) → where it is quantized
    rewrites: tuple[str, ...] | None  # that help this runtime's int8 kernels; None: all
    runs_here: bool = True  # False: files are made for it, and run in ONNX Runtime to see what they compute
    tables: bool = True  # embedding tables may be stored in int8
    # Tensors whose larger side is at most this many times the smaller are signed, with zero point 0, where the target has
    # kernels for that; 0: none. A zero point costs this runtime's kernels time, and an uneven range resolution.
    lopsided: float = 0.0
    weight_zeros: bool = True  # zero points of weights are written out


PROFILES: Mapping[str, Profile] = {
    "onnxruntime": Profile(plan_placement, None),
    # OpenVINO 2026.4 runs a layer in float where layers that lie along different axes of their weights share one zero point
    # (ViT-B/16: 24 of 49 matrix products), as `finish` lets them. It fuses SiLU, hard-swish, GELU and normalization as they stand; pieces of them it does not know.
    "openvino": Profile(
        plan_for_openvino,
        ("batch_norm", "spatial_mean", "layer_scale", "channel_bias"),
        lopsided=1.5,
        weight_zeros=False,
    ),
    # TensorRT fuses as OpenVINO does, and reads no codes in a Gather; `targets.TARGETS` has its zero points and biases.
    "tensorrt": Profile(plan_for_tensorrt, (), runs_here=False, tables=False),
}
