"""ONNX normalizations, reductions, softmax as torch functions."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from compress.graph.operator_node import Builder, OperatorNode, Run


def batch_normalization(node: OperatorNode) -> Run:
    epsilon = node.attribute("epsilon", 1e-5)
    if node.attribute("training_mode", 0):
        raise node.refuse("training_mode=1 (export the model in eval mode)")

    # The running statistics are fixed: this is the inference form in train() too.
    def run(x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        return F.batch_norm(x, mean.detach(), variance.detach(), scale, bias, False, 0.0, epsilon)

    return run


def layer_normalization(node: OperatorNode) -> Run:
    axis, epsilon = node.attribute("axis", -1), node.attribute("epsilon", 1e-5)
    if node.outputs > 1:
        return _layer_normalization_with_statistics(axis, epsilon)

    def run(x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
        shape = x.shape[axis:]
        if scale.shape == shape and (bias is None or bias.shape == shape):
            return F.layer_norm(x, shape, scale, bias, epsilon)
        normal = F.layer_norm(x, shape, None, None, epsilon) * scale
        return normal if bias is None else normal + bias

    return run


def _layer_normalization_with_statistics(axis: int, epsilon: float) -> Run:
    def run(x: Tensor, scale: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        axes = tuple(range(axis % x.dim(), x.dim()))
        mean = x.mean(axes, keepdim=True)
        inverse = torch.rsqrt((x - mean).square().mean(axes, keepdim=True) + epsilon)
        normal = (x - mean) * inverse * scale
        return normal if bias is None else normal + bias, mean, inverse

    return run


def rms_normalization(node: OperatorNode) -> Run:
    axis, epsilon = node.attribute("axis", -1), node.attribute("epsilon", 1e-5)

    def run(x: Tensor, scale: Tensor) -> Tensor:
        axes = tuple(range(axis % x.dim(), x.dim()))
        return x * torch.rsqrt(x.square().mean(axes, keepdim=True) + epsilon) * scale

    return run


def instance_normalization(node: OperatorNode) -> Run:
    epsilon = node.attribute("epsilon", 1e-5)
    return lambda x, scale, bias: F.instance_norm(x, weight=scale, bias=bias, eps=epsilon)


def group_normalization(node: OperatorNode) -> Run:
    groups, epsilon = node.attribute("num_groups"), node.attribute("epsilon", 1e-5)

    def run(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        if scale.numel() != x.shape[1]:  # opset 18 has one scale for each group
            scale, bias = (value.repeat_interleave(x.shape[1] // groups) for value in (scale, bias))
        return F.group_norm(x, groups, scale, bias, epsilon)

    return run


def local_response_normalization(node: OperatorNode) -> Run:
    size, bias = node.attribute("size"), node.attribute("bias", 1.0)
    alpha, beta = node.attribute("alpha", 1e-4), node.attribute("beta", 0.75)
    before = (size - 1) // 2

    def run(x: Tensor) -> Tensor:
        squares = F.pad(x.square().reshape(x.shape[0], 1, x.shape[1], -1), (0, 0, before, size - 1 - before))
        mean = F.avg_pool2d(squares, (size, 1), 1).reshape(x.shape)
        return x / (bias + alpha * mean) ** beta

    return run


def lp_normalization(node: OperatorNode) -> Run:
    axis, p = node.attribute("axis", -1), node.attribute("p", 2)
    return lambda x: x / torch.linalg.vector_norm(x, p, axis, keepdim=True)


def mean_variance_normalization(node: OperatorNode) -> Run:
    axes = tuple(node.attribute("axes", (0, 2, 3)))
    return lambda x: (x - x.mean(axes, keepdim=True)) / (x.std(axes, correction=0, keepdim=True) + 1e-9)


def softmax_like(function: Callable[..., Tensor]) -> Builder:
    def build(node: OperatorNode) -> Run:
        axis = node.attribute("axis", -1 if node.opset >= 13 else 1)
        if node.opset >= 13:
            return lambda x: function(x, axis)

        def run(x: Tensor) -> Tensor:  # before opset 13: over everything from `axis` on
            cut = axis % x.dim()
            return function(x.reshape(math.prod(x.shape[:cut]), -1), -1).reshape(x.shape)

        return run

    return build


def hardmax(x: Tensor, axis: int) -> Tensor:
    return torch.zeros_like(x).scatter(axis, x.argmax(axis, keepdim=True), 1.0)


def reduction(function: Callable[[Tensor, tuple[int, ...], bool], Tensor]) -> Builder:
    """Build a Reduce…: axes from an attribute (old opsets) or from input 1, all of them by default."""

    def build(node: OperatorNode) -> Run:
        keep, attribute = bool(node.attribute("keepdims", 1)), node.attribute("axes")
        nothing = bool(node.attribute("noop_with_empty_axes", 0))
        axes_of = (lambda given=None: list(attribute)) if attribute is not None else node.listed(1)

        def run(x: Tensor, given: Tensor | None = None) -> Tensor:
            axes = axes_of(given)
            if not axes and nothing:
                return x
            return function(x, tuple(axes) if axes else tuple(range(x.dim())), keep)

        return run

    return build


def product(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    for axis in sorted((axis % x.dim() for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keep, dtype=x.dtype)
    return x


def extreme_index(function: Callable[..., Tensor]) -> Builder:
    def build(node: OperatorNode) -> Run:
        axis, keep = node.attribute("axis", 0), bool(node.attribute("keepdims", 1))
        if not node.attribute("select_last_index", 0):
            return lambda x: function(x, axis, keepdim=keep)
        return lambda x: x.shape[axis] - 1 - function(x.flip(axis), axis, keepdim=keep)

    return build


NORMALIZATION: dict[str, Builder] = {
    "ArgMax": extreme_index(torch.argmax),
    "ArgMin": extreme_index(torch.argmin),
    "BatchNormalization": batch_normalization,
    "GroupNormalization": group_normalization,
    "Hardmax": softmax_like(hardmax),
    "InstanceNormalization": instance_normalization,
    "LRN": local_response_normalization,
    "LayerNormalization": layer_normalization,
    "LogSoftmax": softmax_like(torch.log_softmax),
    "LpNormalization": lp_normalization,
    "MeanVarianceNormalization": mean_variance_normalization,
    "RMSNormalization": rms_normalization,
    "ReduceL1": reduction(lambda x, axes, keep: x.abs().sum(axes, keepdim=keep, dtype=x.dtype)),
    "ReduceL2": reduction(lambda x, axes, keep: torch.linalg.vector_norm(x, 2, axes, keepdim=keep)),
    "ReduceLogSum": reduction(lambda x, axes, keep: x.sum(axes, keepdim=keep).log()),
    "ReduceLogSumExp": reduction(lambda x, axes, keep: torch.logsumexp(x, axes, keepdim=keep)),
    "ReduceMax": reduction(lambda x, axes, keep: x.amax(axes, keepdim=keep)),
    "ReduceMean": reduction(lambda x, axes, keep: x.mean(axes, keepdim=keep)),
    "ReduceMin": reduction(lambda x, axes, keep: x.amin(axes, keepdim=keep)),
    "ReduceProd": reduction(product),
    "ReduceSum": reduction(lambda x, axes, keep: x.sum(axes, keepdim=keep, dtype=x.dtype)),
    "ReduceSumSquare": reduction(lambda x, axes, keep: x.square().sum(axes, keepdim=keep, dtype=x.dtype)),
    "Softmax": softmax_like(torch.softmax),
}
