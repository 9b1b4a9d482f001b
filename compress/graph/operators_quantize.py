"""ONNX quantize, dequantize, integer products, with straight-through gradients.

    q = clamp(round(x / scale) + zero_point, low, high)      round half to even
    x = (q - zero_point) * scale

A quantized tensor is held as float that carries integers, so that gradients pass: rounding counts
as the identity, the clamp stops the gradient outside its range.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from compress.graph.operator_node import Builder, OperatorNode, Run
from compress.graph.operators_convolution import convolution

RANGES = {
    ir.DataType.UINT8: (0, 255),
    ir.DataType.INT8: (-128, 127),
    ir.DataType.UINT16: (0, 65535),
    ir.DataType.INT16: (-32768, 32767),
    ir.DataType.UINT4: (0, 15),
    ir.DataType.INT4: (-8, 7),
}


class RoundThrough(torch.autograd.Function):
    """Round half to even; the gradient passes as if it were the identity."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.round(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def _aligned(node: OperatorNode, value: Tensor, x: Tensor) -> Tensor:
    """Shape a scale or zero point for `x`: a scalar, one value along the axis, or one for each block."""
    value = value.to(x.dtype if x.is_floating_point() else torch.float32)
    if value.numel() == 1:
        return value.reshape(())
    axis, block = node.attribute("axis", 1) % x.dim(), node.attribute("block_size", 0)
    if block:
        return value.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])
    return value.reshape([-1 if i == axis else 1 for i in range(x.dim())])


def quantize_linear(node: OperatorNode) -> Run:
    code = node.dtype(2) if node.has(2) else ir.DataType(node.attribute("output_dtype", 0) or ir.DataType.UINT8)
    if code not in RANGES:
        raise node.refuse(f"quantization to {code.name if code is not None else 'an unknown type'}")
    low, high = RANGES[code]

    def run(x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
        q = RoundThrough.apply(x / _aligned(node, scale, x))
        return torch.clamp(q if zero is None else q + _aligned(node, zero, x), low, high)

    return run


def dequantize_linear(node: OperatorNode) -> Run:
    def run(q: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
        q = q if q.is_floating_point() else q.to(scale.dtype)
        return (q if zero is None else q - _aligned(node, zero, q)) * _aligned(node, scale, q)

    return run


def dynamic_quantize_linear(node: OperatorNode) -> Run:
    def run(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        low, high = x.detach().amin().clamp(max=0), x.detach().amax().clamp(min=0)
        scale = (high - low) / 255
        scale = torch.where(scale == 0, torch.ones_like(scale), scale)
        zero = torch.round(torch.clamp(-low / scale, 0, 255))
        return torch.clamp(RoundThrough.apply(x / scale) + zero, 0, 255), scale, zero.to(torch.uint8)

    return run


def matmul_integer(node: OperatorNode) -> Run:
    def run(a: Tensor, b: Tensor, a_zero: Tensor | None = None, b_zero: Tensor | None = None) -> Tensor:
        a = a.float() if a_zero is None else a.float() - _rows(a_zero.float())
        b = b.float() if b_zero is None else b.float() - b_zero.float()
        return torch.matmul(a, b)

    return run


def _rows(zero: Tensor) -> Tensor:
    return zero if zero.dim() == 0 else zero.unsqueeze(-1)


def convolution_integer(node: OperatorNode) -> Run:
    product = convolution(node)

    def run(x: Tensor, weight: Tensor, x_zero: Tensor | None = None, w_zero: Tensor | None = None) -> Tensor:
        # Padding is the zero point, that is 0 once it is taken off.
        x = x.float() if x_zero is None else x.float() - x_zero.float()
        weight = weight.float()
        if w_zero is not None:
            weight = weight - w_zero.float().reshape(-1, *[1] * (weight.dim() - 1))
        return product(x, weight)

    return run


QUANTIZE: dict[str, Builder] = {
    "ConvInteger": convolution_integer,
    "DequantizeLinear": dequantize_linear,
    "DynamicQuantizeLinear": dynamic_quantize_linear,
    "MatMulInteger": matmul_integer,
    "QuantizeLinear": quantize_linear,
}
