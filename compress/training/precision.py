"""Mixed precision: the autocast of a forward pass, with its gradient scaler where one is needed."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from compress.training.options import TrainOptions

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(options: TrainOptions, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    if options.precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=DTYPES[options.precision])


def make_scaler(options: TrainOptions, device: torch.device) -> torch.amp.GradScaler:
    """Return a scaler that is idle except for fp16 on CUDA, whose gradients would underflow without it."""
    return torch.amp.GradScaler(device.type, enabled=options.precision == "fp16" and device.type == "cuda")
