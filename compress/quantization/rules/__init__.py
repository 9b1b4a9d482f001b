"""What each runtime would refuse, or run in float, of a quantized file; a runtime more is one file and one line here."""

from __future__ import annotations

from collections.abc import Mapping

from compress.quantization.rules import onnxruntime, openvino, tensorrt
from compress.quantization.rules.rule import Rule

RULES: Mapping[str, tuple[Rule, ...]] = {
    "onnxruntime": onnxruntime.RULES,
    "openvino": openvino.RULES,
    "tensorrt": tensorrt.RULES,
}
