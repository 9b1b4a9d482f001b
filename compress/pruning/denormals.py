"""Weights too small to matter, slow to compute with, set to zero."""

from __future__ import annotations

import torch
from torch import nn


def flush_denormals(module: nn.Module) -> int:
    """Set denormal weights and buffers of `module` to zero, in place; return how many there were.

    A denormal is nonzero and smaller than the type's least normal number (1.2e-38 for float32). Processors take up
    to a hundred times as long for them, and fine-tuning with weight decay leaves many behind in pruned layers.
    """
    count = 0
    with torch.no_grad():
        for tensor in [*module.parameters(), *module.buffers()]:
            if tensor.dtype in (torch.float32, torch.float64, torch.bfloat16):
                # Compared as integers: a processor set to flush would call a denormal equal to zero.
                bits = tensor.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])
                tiny = {torch.float32: 0x7F800000, torch.float64: 0x7FF0000000000000, torch.bfloat16: 0x7F80}[
                    tensor.dtype
                ]
                mantissa = {torch.float32: 0x007FFFFF, torch.float64: 0x000FFFFFFFFFFFFF, torch.bfloat16: 0x007F}[
                    tensor.dtype
                ]
                denormal = ((bits & tiny) == 0) & ((bits & mantissa) != 0)
                found = int(denormal.sum())
                if found:
                    tensor[denormal] = 0.0
                    count += found
    return count
