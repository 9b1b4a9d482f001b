"""What an operator builder may read of an ONNX node: attributes, constant inputs, opset."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from compress.errors import UnsupportedOperatorError

# What a builder returns: it takes the node's inputs in order (None where absent).
Run = Callable[..., Any]
Builder = Callable[["OperatorNode"], Run]


@dataclass(frozen=True)
class OperatorNode:
    """One node while its function is being built.

    `constants[i]` is input i as a CPU tensor where it is known before anything runs, else None;
    `dtypes[i]` is its ONNX element type where the graph says; `present[i]` whether it is given.
    """

    op_type: str
    name: str
    opset: int
    attributes: Mapping[str, Any]
    constants: tuple[Tensor | None, ...]
    dtypes: tuple[ir.DataType | None, ...]
    present: tuple[bool, ...]
    outputs: int

    def attribute(self, key: str, default: Any = None) -> Any:
        return self.attributes.get(key, default)

    def has(self, index: int) -> bool:
        return index < len(self.present) and self.present[index]

    def constant(self, index: int) -> Tensor | None:
        return self.constants[index] if index < len(self.constants) else None

    def number(self, index: int) -> float | int | None:
        """Return a constant input of one element as a Python number."""
        value = self.constant(index)
        return None if value is None or value.numel() != 1 else value.reshape(()).item()

    def dtype(self, index: int) -> ir.DataType | None:
        return self.dtypes[index] if index < len(self.dtypes) else None

    def listed(self, index: int) -> Callable[[Tensor | None], Any]:
        """Return a reader of an input that is a list of numbers: once where constant, else each time."""
        known = self.constant(index)
        if known is not None:
            values = known.reshape(-1).tolist()
            return lambda given: values
        return lambda given: None if given is None else given.reshape(-1).tolist()

    def refuse(self, what: str) -> UnsupportedOperatorError:
        return UnsupportedOperatorError(
            f"node {self.name!r} ({self.op_type}, opset {self.opset}): {what} cannot be executed with gradients"
        )


def plain(function: Run) -> Builder:
    """Build an operator without attributes: the torch function itself."""
    return lambda node: function


TORCH_DTYPES: dict[int, torch.dtype] = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.DOUBLE: torch.float64,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
    ir.DataType.INT8: torch.int8,
    ir.DataType.UINT8: torch.uint8,
    ir.DataType.INT16: torch.int16,
    ir.DataType.UINT16: torch.uint16,
    ir.DataType.INT32: torch.int32,
    ir.DataType.INT64: torch.int64,
    ir.DataType.BOOL: torch.bool,
}


def torch_dtype(node: OperatorNode, code: int) -> torch.dtype:
    """Return the torch dtype of an ONNX element type.

    Raises:
        UnsupportedOperatorError: torch has no such dtype (strings, 4-bit, complex …).
    """
    if code not in TORCH_DTYPES:
        raise node.refuse(f"element type {ir.DataType(code).name}")
    return TORCH_DTYPES[code]
