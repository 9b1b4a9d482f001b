"""ONNX convolutions, poolings, matrix products as torch functions."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from compress.graph.operator_node import Builder, OperatorNode, Run, plain

CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
MAX_POOLS = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
AVERAGE_POOLS = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def interleaved(begins: Sequence[int], ends: Sequence[int]) -> list[int]:
    """Return pads as `F.pad` wants them: last axis first, begin before end.

    >>> interleaved([1, 2], [3, 4])
    [2, 4, 1, 3]
    """
    return [pad for pair in reversed(list(zip(begins, ends))) for pad in pair]


class Window:
    """A sliding window's attributes, with `auto_pad` worked out once the input size is known."""

    def __init__(self, node: OperatorNode, kernel: Sequence[int]):
        rank = len(kernel)
        self.kernel = tuple(kernel)
        self.strides = tuple(node.attribute("strides", (1,) * rank))
        self.dilations = tuple(node.attribute("dilations", (1,) * rank))
        self.auto = node.attribute("auto_pad", "NOTSET")
        pads = tuple(node.attribute("pads", (0,) * 2 * rank)) if self.auto == "NOTSET" else (0,) * 2 * rank
        self.begins, self.ends = pads[:rank], pads[rank:]
        self.rank = rank

    @property
    def depends_on_size(self) -> bool:
        return self.auto in ("SAME_UPPER", "SAME_LOWER")

    def pads(self, sizes: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        if not self.depends_on_size:
            return self.begins, self.ends
        begins, ends = [], []
        for size, kernel, stride, dilation in zip(sizes, self.kernel, self.strides, self.dilations):
            total = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
            small, large = total // 2, total - total // 2
            begins.append(small if self.auto == "SAME_UPPER" else large)
            ends.append(large if self.auto == "SAME_UPPER" else small)
        return tuple(begins), tuple(ends)


def convolution(node: OperatorNode) -> Run:
    group = node.attribute("group", 1)

    @functools.cache
    def window_of(kernel: tuple[int, ...]) -> Window:
        return Window(node, kernel)

    def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        window = window_of(tuple(weight.shape[2:]))
        begins, ends = window.pads(x.shape[2:])
        if begins != ends:
            x, begins = F.pad(x, interleaved(begins, ends)), (0,) * window.rank
        return CONVOLUTIONS[window.rank](x, weight, bias, window.strides, begins, window.dilations, group)

    return run


def transposed_convolution(node: OperatorNode) -> Run:
    group, wanted = node.attribute("group", 1), node.attribute("output_shape")

    def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        window = Window(node, weight.shape[2:])
        extra = tuple(node.attribute("output_padding", (0,) * window.rank))
        begins, ends = window.begins, window.ends
        if wanted is not None or window.depends_on_size:
            begins, ends = _crop(window, extra, x.shape[2:], wanted)
        function = TRANSPOSED[window.rank]
        if begins == ends and min(begins) >= 0 and not any(e >= max(s, d) for e, s, d in _limits(extra, window)):
            return function(x, weight, bias, window.strides, begins, extra, group, window.dilations)
        # Asymmetric: compute all, then cut; `output_padding` is cut less at the end.
        full = function(x, weight, bias, window.strides, 0, 0, group, window.dilations)
        cuts = [e - more for e, more in zip(ends, extra)]
        return F.pad(full, interleaved([-b for b in begins], [-e for e in cuts]))

    return run


def _limits(extra: Sequence[int], window: Window) -> list[tuple[int, int, int]]:
    return list(zip(extra, window.strides, window.dilations))


def _crop(
    window: Window, extra: Sequence[int], sizes: Sequence[int], wanted: Sequence[int] | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return what to cut at either side so that the output has `wanted` (else input x stride) elements."""
    begins, ends = [], []
    for i, size in enumerate(sizes):
        full = window.strides[i] * (size - 1) + extra[i] + (window.kernel[i] - 1) * window.dilations[i] + 1
        total = full - (wanted[i - len(sizes)] if wanted is not None else size * window.strides[i])
        # ONNX puts the odd element at the end only for SAME_UPPER.
        begin = total // 2 if window.auto == "SAME_UPPER" else total - total // 2
        begins.append(begin)
        ends.append(total - begin)
    return tuple(begins), tuple(ends)


def max_pool(node: OperatorNode) -> Run:
    window, ceil = Window(node, node.attribute("kernel_shape")), bool(node.attribute("ceil_mode", 0))
    if node.outputs > 1:
        raise node.refuse("the output 'Indices'")
    function = MAX_POOLS[window.rank]

    def run(x: Tensor) -> Tensor:
        begins, ends = window.pads(x.shape[2:])
        if begins != ends or any(2 * pad > k for pad, k in zip(begins, window.kernel)):
            x, begins = F.pad(x, interleaved(begins, ends), value=-math.inf), (0,) * window.rank
        return function(x, window.kernel, window.strides, begins, window.dilations, ceil)

    return run


def average_pool(node: OperatorNode) -> Run:
    window, ceil = Window(node, node.attribute("kernel_shape")), bool(node.attribute("ceil_mode", 0))
    include = bool(node.attribute("count_include_pad", 0))
    function = AVERAGE_POOLS[window.rank]
    if window.dilations != (1,) * window.rank:
        raise node.refuse("a dilated average pooling")

    def run(x: Tensor) -> Tensor:
        begins, ends = window.pads(x.shape[2:])
        if begins == ends and all(2 * pad <= k for pad, k in zip(begins, window.kernel)):
            return function(x, window.kernel, window.strides, begins, ceil, include)
        pads = interleaved(begins, ends)
        total = function(F.pad(x, pads), window.kernel, window.strides, 0, ceil, True)
        if include:
            return total
        # The share of each window that is not padding.
        ones = F.pad(torch.ones_like(x[:1, :1]), pads)
        return total / function(ones, window.kernel, window.strides, 0, ceil, True)

    return run


def lp_pool(node: OperatorNode) -> Run:
    window, p = Window(node, node.attribute("kernel_shape")), node.attribute("p", 2)
    if node.attribute("ceil_mode", 0) or window.dilations != (1,) * window.rank:
        raise node.refuse("an Lp pooling with ceil_mode or dilations")
    function = AVERAGE_POOLS[window.rank]

    def run(x: Tensor) -> Tensor:
        padded = F.pad(x.abs() ** p, interleaved(*window.pads(x.shape[2:])))
        return (function(padded, window.kernel, window.strides) * math.prod(window.kernel)) ** (1 / p)

    return run


def _spatial(x: Tensor) -> tuple[int, ...]:
    return tuple(range(2, x.dim()))


def global_lp_pool(node: OperatorNode) -> Run:
    p = node.attribute("p", 2)
    return lambda x: torch.linalg.vector_norm(x, p, _spatial(x), keepdim=True)


def gemm(node: OperatorNode) -> Run:
    alpha, beta = node.attribute("alpha", 1.0), node.attribute("beta", 1.0)
    flip_a, flip_b = node.attribute("transA", 0), node.attribute("transB", 0)

    def run(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        a, b = a.t() if flip_a else a, b.t() if flip_b else b
        if c is None:
            return torch.mm(a, b) * alpha
        return torch.addmm(c, a, b, beta=beta, alpha=alpha)

    return run


def einsum(node: OperatorNode) -> Run:
    return functools.partial(torch.einsum, node.attribute("equation"))


def grid_sample(node: OperatorNode) -> Run:
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(node.attribute("mode", "linear"), node.attribute("mode"))
    options = {
        "mode": mode or "bilinear",
        "padding_mode": node.attribute("padding_mode", "zeros"),
        "align_corners": bool(node.attribute("align_corners", 0)),
    }
    return functools.partial(F.grid_sample, **options)


CONVOLUTION: dict[str, Builder] = {
    "AveragePool": average_pool,
    "Conv": convolution,
    "ConvTranspose": transposed_convolution,
    "Einsum": einsum,
    "Gemm": gemm,
    "GlobalAveragePool": plain(lambda x: x.mean(_spatial(x), keepdim=True)),
    "GlobalLpPool": global_lp_pool,
    "GlobalMaxPool": plain(lambda x: x.amax(_spatial(x), keepdim=True)),
    "GridSample": grid_sample,
    "LpPool": lp_pool,
    "MatMul": plain(torch.matmul),
    "MaxPool": max_pool,
}
