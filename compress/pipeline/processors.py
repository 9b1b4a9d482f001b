"""Files that were made for another processor than the one that times them."""

from __future__ import annotations

import contextlib
import platform
from pathlib import Path
from typing import Any

import onnx_ir as ir

from compress.onnx_files import read_onnx
from compress.quantization.targets import TARGETS, detect
from compress.quantization.weights import TARGET


def made_elsewhere(target: Any) -> str:
    """In words, what a graph or ONNX file was made for and where it runs now; nothing where the two fit."""
    made_for = _made_for(target)
    here = detect()
    if made_for not in TARGETS or made_for in ("any", here):
        return ""
    return f"made for {made_for}, timed on {here if here != 'any' else platform.machine()}"


def _made_for(target: Any) -> str:
    """The target in the file's metadata."""
    graph = target
    if isinstance(target, (str, Path)):
        if Path(target).suffix != ".onnx":
            return ""
        with contextlib.suppress(Exception):  # a file that cannot be read is reported when it is run
            graph = read_onnx(Path(target))
    return graph.metadata_props.get(TARGET, "") if isinstance(graph, ir.Model) else ""
