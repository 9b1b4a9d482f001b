"""Operators that the ONNX exporter has no form of, written in ones that it has, before it sees the program.

adaptive max pooling to sizes O    max_pool with kernel and stride I / O where O divides I, else along that axis
                                   cat(max_pool(x[⌊i·I/O⌋ : ⌈(i+1)·I/O⌉]) for i < O); axes are taken one by one,
                                   which for a maximum, and for a mean over a box, is the same
adaptive average pooling in 3-D    the same with means (the exporter has it in 1-D and 2-D)
RReLU, not in training             LeakyReLU of the mean slope
average pooling of channels-last   the mean (the exporter's own form ends in a Gather of computed indices, which keeps the
tensors to 1×1                     strides and nothing else; runtimes neither fuse it nor quantize around it)
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from compress.errors import ExportError

ATEN = torch.ops.aten
Pool = Callable[..., Tensor]
_MAXIMA: dict[int, Pool] = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}


def decomposed(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The program with the operators of `DECOMPOSITIONS` written out; the same program where it has none.

    Raises:
        ExportError: one of them is used in a way that has no ONNX form.
    """
    found = [node for node in program.graph.nodes if _is_written_out(node)]
    for node in found:
        if node.target is ATEN.rrelu.default and len(node.args) > 3 and node.args[3]:
            raise ExportError("RReLU in training draws its slopes anew each time; export the model in eval mode")
        for reader in node.users:
            if reader.target is operator.getitem and reader.args[1] == 1 and reader.users:
                raise ExportError(
                    f"{node.name} is asked for indices, which adaptive max pooling has no ONNX form of; leave return_indices out"
                )
    return program.run_decompositions(DECOMPOSITIONS) if found else program


def _adaptive_max_pool(dimensions: int) -> Callable[[Tensor, Sequence[int]], tuple[Tensor, Tensor]]:
    def run(x: Tensor, sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
        result = _by_axes(x, sizes, dimensions, _MAXIMA[dimensions])
        return result, torch.zeros_like(result, dtype=torch.int64)  # no node reads them: see `decomposed`

    return run


def _adaptive_avg_pool3d(x: Tensor, sizes: Sequence[int]) -> Tensor:
    return _by_axes(x, sizes, 3, functional.avg_pool3d)


def _leaky_relu(x: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, *_: Any) -> Tensor:
    return functional.leaky_relu(x, (lower + upper) / 2)


def _adaptive_avg_pool2d(x: Tensor, sizes: Sequence[int]) -> Tensor:
    if list(sizes) != [1, 1]:
        return NotImplemented  # the exporter's own form
    return x.mean((-2, -1), keepdim=True)


def _is_written_out(node: torch.fx.Node) -> bool:
    """Whether the exporter lacks the operator; of average pooling, whether its form would keep channels-last strides."""
    if node.target is not ATEN.adaptive_avg_pool2d.default:
        return node.target in DECOMPOSITIONS
    x = node.args[0].meta.get("val") if isinstance(node.args[0], torch.fx.Node) else None
    if not isinstance(x, Tensor) or x.dim() != 4 or list(node.args[1]) != [1, 1]:  # type: ignore[arg-type]  # two sizes
        return False
    return x.stride(1) == 1 and not x.is_contiguous()


def _by_axes(x: Tensor, sizes: Sequence[int], dimensions: int, pool: Pool) -> Tensor:
    """Adaptive pooling, one spatial axis after the other."""
    batched = x if x.dim() == dimensions + 2 else x[None]
    for axis, size in enumerate(sizes):
        batched = _pooled(batched, axis, dimensions, int(size), pool)
    return batched if x.dim() == dimensions + 2 else batched[0]


def _pooled(x: Tensor, axis: int, dimensions: int, wanted: int, pool: Pool) -> Tensor:
    size, place = x.shape[axis + 2], axis + 2
    if wanted == 1 and not isinstance(size, int):
        return x.amax(place, keepdim=True) if pool in _MAXIMA.values() else x.mean(place, keepdim=True)
    if not isinstance(size, int):
        raise ExportError(
            f"adaptive pooling to {wanted} needs a fixed size of dimension {place} of its input, and it is dynamic; "
            "export with that dimension fixed"
        )

    def along(part: Tensor, kernel: int) -> Tensor:
        kernels = [1] * dimensions
        kernels[axis] = kernel
        return pool(part, kernels) if kernel > 1 else part

    if size % wanted == 0:
        return along(x, size // wanted)
    windows = [(i * size // wanted, -(-(i + 1) * size // wanted)) for i in range(wanted)]
    return torch.cat([along(x.narrow(place, start, stop - start), stop - start) for start, stop in windows], dim=place)


DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    ATEN.adaptive_max_pool1d.default: _adaptive_max_pool(1),
    ATEN.adaptive_max_pool2d.default: _adaptive_max_pool(2),
    ATEN.adaptive_max_pool3d.default: _adaptive_max_pool(3),
    ATEN.adaptive_avg_pool3d.default: _adaptive_avg_pool3d,
    ATEN.adaptive_avg_pool2d.default: _adaptive_avg_pool2d,
    ATEN.rrelu.default: _leaky_relu,
}
