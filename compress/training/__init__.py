"""Training of the models that the rest compresses: one plain loop, alone or over several processes."""

import importlib
from typing import Any

_HOMES = {  # imported on first use: the command reads the options without waiting for torch
    "FinetuneOptions": "compress.training.options",
    "FitResult": "compress.training.loop",
    "TrainOptions": "compress.training.options",
    "fit": "compress.training.loop",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'compress.training' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
