"""Operators that the ONNX exporter has no form of, written in ones that it has, before it sees the program.

adaptive max pooling to sizes O    max_pool with kernel and stride I / O where O divides I, else along that axis
                                   cat(max_pool(x[⌊i·I/O⌋ : ⌈(i+1)·I/O⌉]) for i < O); axes are taken one by one,
                                   which for a maximum is the same
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from compress.errors import ExportError

ATEN = torch.ops.aten
_POOLS: dict[int, Callable[..., Tensor]] = {
    1: functional.max_pool1d,
    2: functional.max_pool2d,
    3: functional.max_pool3d,
}


def decomposed(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The program with the operators of `DECOMPOSITIONS` written out; the same program where it has none.

    Raises:
        ExportError: one of them is used in a way that has no ONNX form.
    """
    found = [node for node in program.graph.nodes if node.target in DECOMPOSITIONS]
    for node in found:
        for reader in node.users:
            if reader.args[1:] == (1,) and reader.users:
                raise ExportError(
                    f"{node.name} is asked for indices, which adaptive max pooling has no ONNX form of; leave return_indices out"
                )
    return program.run_decompositions(DECOMPOSITIONS) if found else program


def _adaptive_max_pool(dimensions: int) -> Callable[[Tensor, Sequence[int]], tuple[Tensor, Tensor]]:
    def run(x: Tensor, sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
        batched = x if x.dim() == dimensions + 2 else x[None]
        for axis, size in enumerate(sizes):
            batched = _pooled(batched, axis, dimensions, int(size))
        result = batched if x.dim() == dimensions + 2 else batched[0]
        return result, torch.zeros_like(result, dtype=torch.int64)  # nobody reads them: see `decomposed`

    return run


def _pooled(x: Tensor, axis: int, dimensions: int, wanted: int) -> Tensor:
    """Adaptive max pooling along one spatial axis."""
    size = x.shape[axis + 2]
    if wanted == 1 and not isinstance(size, int):
        return x.amax(axis + 2, keepdim=True)
    if not isinstance(size, int):
        raise ExportError(
            f"adaptive max pooling to {wanted} needs a fixed size of dimension {axis + 2} of its input, and it is dynamic; "
            "export with that dimension fixed"
        )
    if size == wanted:
        return x
    if size % wanted == 0:
        return _max_pool(x, axis, dimensions, size // wanted)
    windows = [(i * size // wanted, -(-(i + 1) * size // wanted)) for i in range(wanted)]
    return torch.cat(
        [_max_pool(x.narrow(axis + 2, a, b - a), axis, dimensions, b - a) for a, b in windows], dim=axis + 2
    )


def _max_pool(x: Tensor, axis: int, dimensions: int, kernel: int) -> Tensor:
    kernels = [1] * dimensions
    kernels[axis] = kernel
    return _POOLS[dimensions](x, kernels) if kernel > 1 else x


DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    ATEN.adaptive_max_pool1d.default: _adaptive_max_pool(1),
    ATEN.adaptive_max_pool2d.default: _adaptive_max_pool(2),
    ATEN.adaptive_max_pool3d.default: _adaptive_max_pool(3),
}
