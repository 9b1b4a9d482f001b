"""Batch-norm over all processes: mean, variance and count of the whole batch, on any backend.

torch.nn.SyncBatchNorm takes CUDA tensors only ("expected input tensor to be on GPU"). This is the same
arithmetic with differentiable all-reduces, so gloo on CPU works too. With n samples over all processes:
    mean = Σx / n,   var = Σ(x − mean)² / n,   running variance uses Σ(x − mean)² / (n − 1).
Two sums instead of Σx², because E[x²] − E[x]² loses half the digits in float32.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.autograd import Function
from torch.nn.modules.batchnorm import _BatchNorm

from compress.training.forwards import forwards


class _Sum(Function):
    """Sum of a tensor over all processes; its gradient is summed likewise, as every process uses it."""

    @staticmethod
    def forward(context: Any, value: Tensor) -> Tensor:
        total = value.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        distributed.all_reduce(total)
        return total


class Counted:
    """Whether the samples of this process count: not in the batch that only pads a last, uneven one."""

    def __init__(self) -> None:
        self.now = True


@contextlib.contextmanager
def synchronized(module: nn.Module, counted: Counted) -> Iterator[None]:
    """Let every batch-norm of `module` normalize over all processes for the length of a block."""
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    with forwards({norm: functools.partial(_forward, norm, counted) for norm in norms}):
        yield


def _forward(norm: _BatchNorm, counted: Counted, value: Tensor) -> Tensor:
    if not norm.training:
        return type(norm).forward(norm, value)
    axes = [0, *range(2, value.dim())]
    shape = [1, -1] + [1] * (value.dim() - 2)
    weight = 1.0 if counted.now else 0.0
    here = value.numel() / value.shape[1] * weight
    sums = _Sum.apply(torch.cat([value.sum(axes) * weight, value.new_full((1,), here)]))
    count = sums[-1].detach()
    mean = sums[:-1] / count
    centred = value - mean.view(shape)
    squares = _Sum.apply((centred * centred).sum(axes) * weight)
    scale = torch.rsqrt(squares / count + norm.eps)
    _track(norm, mean.detach(), squares.detach(), count)
    result = centred * scale.view(shape)
    if norm.affine:
        result = result * norm.weight.view(shape) + norm.bias.view(shape)
    return result


@torch.no_grad()
def _track(norm: _BatchNorm, mean: Tensor, squares: Tensor, count: Tensor) -> None:
    if not norm.track_running_stats or norm.running_mean is None or norm.running_var is None:
        return
    factor = norm.momentum
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        factor = 1.0 / float(norm.num_batches_tracked) if factor is None else factor
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), factor or 0.0)
    norm.running_var.lerp_((squares / (count - 1)).to(norm.running_var.dtype), factor or 0.0)
