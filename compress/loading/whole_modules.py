"""Modules pickled whole, alone or inside a checkpoint, and the switches that make them exportable.

torch.save(module)                          the module
{"epoch": …, "model": module, "ema": …}     the averaged one where there is one, else the one under `HOLDERS`
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compress.errors import ModelError

# Where training scripts put the module, what they would deploy first: an average of the weights before the last ones.
HOLDERS = ("ema", "model", "net", "module", "network")
_INNER = ("module", "ema")  # wrappers of averaged weights hold the module under a name of their own


def module_in(content: Any, path: Path) -> tuple[nn.Module | None, tuple[str, ...]]:
    """The module that a checkpoint's content is or holds, in eval mode and float, with sentences for the user; None without."""
    notes: tuple[str, ...] = ()
    if not isinstance(content, nn.Module):
        if not isinstance(content, Mapping):
            return None, ()
        holders = [name for name in HOLDERS if isinstance(content.get(name), nn.Module)]
        if not holders:
            return None, ()
        others = f", not the one under {', '.join(map(repr, holders[1:]))}" if holders[1:] else ""
        notes = (f"{path.name!r} holds a whole module under {holders[0]!r}: that is taken{others}",)
        content = content[holders[0]]
    module = _unwrapped(content)
    halves = {p.dtype for p in module.parameters()} & {torch.float16, torch.bfloat16}
    if halves:
        module = module.float()
        kinds = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in halves))
        notes += (f"{path.name!r} holds {kinds} weights; they are float32 now",)
    return module.eval(), notes + switch_for_export(module)


def switch_for_export(module: nn.Module) -> tuple[str, ...]:
    """Turn on, in place, the heads' own switch for export (`export`, `dynamic`, `format`), as detectors have it."""
    found = []
    for name, part in module.named_modules():
        if name and isinstance(vars(part).get("export", getattr(type(part), "export", None)), bool):
            part.export = True  # no attribute of nn.Module: the head's own
            if isinstance(getattr(part, "dynamic", None), bool):
                part.dynamic = True  # anchors for any batch and size
            if getattr(part, "format", "") is None:
                part.format = "onnx"
            found.append(f"{type(part).__name__} {name!r}")
    return (f"the export form of {', '.join(found)} is on",) if found else ()


def check_ultralytics(spec: str) -> None:
    """Refuse where the code that the checkpoint's classes live in is not here.

    Raises:
        ModelError: naming the package.
    """
    if importlib.util.find_spec("ultralytics") is None:
        raise ModelError(f"{spec!r} needs the package ultralytics, which is not installed; pip install ultralytics")


def _unwrapped(module: nn.Module) -> nn.Module:
    """What a wrapper of one module (averaged weights, DataParallel) holds."""
    for name in _INNER:
        inner = module._modules.get(name)
        if isinstance(inner, nn.Module) and len(module._modules) == 1 and not list(module.parameters(recurse=False)):
            return inner
    return module
