"""The one door to torchvision, which also opens where its wheel was built for another torch."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import torch

from compress.errors import ModelError

# A wheel whose compiled operators do not load with this torch (a CUDA wheel beside a CPU torch) stops at its own
# `register_fake`, because the operator it describes does not exist. Its models, transforms and data sets are Python.
_MISSING = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_library: Any = None  # kept alive: the declarations vanish with it


def _declare_operators() -> None:
    global _library
    if _library is None:
        _library = torch.library.Library("torchvision", "FRAGMENT")
    for name, schema in _MISSING.items():
        if not hasattr(torch.ops.torchvision, name):
            _library.define(schema)


def _import_torchvision() -> Any:
    try:
        return importlib.import_module("torchvision")
    except ModuleNotFoundError as error:
        raise ModelError(f"torchvision is not installed ({error}); run: pip install torchvision") from error
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    # A half-imported package would answer the next import with what it got so far.
    for name in [name for name in sys.modules if name == "torchvision" or name.startswith("torchvision.")]:
        del sys.modules[name]
    _declare_operators()
    return importlib.import_module("torchvision")


torchvision: Any = _import_torchvision()
