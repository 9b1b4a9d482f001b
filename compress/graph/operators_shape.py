"""ONNX operators that move, index or make data, as torch functions."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from compress.counting import counted
from compress.graph.operator_node import Builder, OperatorNode, Run, plain


def shape(node: OperatorNode) -> Run:
    start, end = node.attribute("start", 0), node.attribute("end")
    return lambda x: torch.tensor(x.shape[start:end], dtype=torch.int64)


def reshape(node: OperatorNode) -> Run:
    sizes_of, allow_zero = node.listed(1), node.attribute("allowzero", 0)

    def run(x: Tensor, wanted: Tensor) -> Tensor:
        sizes = sizes_of(wanted)
        if not allow_zero and 0 in sizes:
            sizes = [x.shape[i] if size == 0 else size for i, size in enumerate(sizes)]
        return x.reshape(sizes)

    return run


def flatten(node: OperatorNode) -> Run:
    axis = node.attribute("axis", 1)

    def run(x: Tensor) -> Tensor:
        cut = axis + x.dim() if axis < 0 else axis
        return x.reshape(math.prod(x.shape[:cut]), math.prod(x.shape[cut:]))

    return run


def _axes(node: OperatorNode) -> Run:
    """Return a reader of axes that older opsets give as an attribute, newer ones as input 1."""
    axes = node.attribute("axes")
    return (lambda given=None: list(axes)) if axes is not None else node.listed(1)


def squeeze(node: OperatorNode) -> Run:
    if not node.has(1) and "axes" not in node.attributes:
        return lambda x: x.squeeze()
    axes_of = _axes(node)
    return lambda x, axes=None: x.squeeze(tuple(axes_of(axes)))


def unsqueeze(node: OperatorNode) -> Run:
    axes_of = _axes(node)

    def run(x: Tensor, axes: Tensor | None = None) -> Tensor:
        listed = axes_of(axes)
        rank = x.dim() + len(listed)
        for axis in sorted(axis % rank for axis in listed):
            x = x.unsqueeze(axis)
        return x

    return run


def transpose(node: OperatorNode) -> Run:
    order = node.attribute("perm")
    return lambda x: x.permute(tuple(order) if order is not None else tuple(range(x.dim()))[::-1])


def concat(node: OperatorNode) -> Run:
    axis = node.attribute("axis")
    return lambda *inputs: torch.cat(inputs, axis)


def split(node: OperatorNode) -> Run:
    axis, attribute, parts = node.attribute("axis", 0), node.attribute("split"), node.outputs
    sizes_of = (lambda given=None: list(attribute)) if attribute is not None else node.listed(1)

    def run(x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
        listed = sizes_of(sizes)
        if listed is None:  # equal parts, the last ones smaller or empty
            length = x.shape[axis]
            each = -(-length // parts)
            listed = [min(each, max(length - each * i, 0)) for i in range(parts)]
        return torch.split(x, listed, axis)

    return run


def slice_(node: OperatorNode) -> Run:
    if "starts" in node.attributes:  # opset 1
        starts, ends, axes = (node.attribute(key) for key in ("starts", "ends", "axes"))
        return lambda x: _sliced(x, starts, ends, axes, None)
    readers = [node.listed(i) for i in range(1, 5)]

    def run(x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor | None = None, steps: Tensor | None = None) -> Tensor:
        return _sliced(x, *(read(given) for read, given in zip(readers, (starts, ends, axes, steps))))

    return run


def _sliced(x: Tensor, starts: Any, ends: Any, axes: Any, steps: Any) -> Tensor:
    for i, (start, end) in enumerate(zip(starts, ends)):
        axis, step = axes[i] if axes else i, steps[i] if steps else 1
        size = x.shape[axis]
        if step > 0:
            chosen = slice(start, end, step).indices(size)
            if chosen != (0, size, 1):
                x = x[(slice(None),) * (axis % x.dim()) + (slice(*chosen),)]
        else:
            # An end before the first element (ONNX: any value ≤ -size - 1) keeps the first element.
            begin = min(start + size if start < 0 else start, size - 1)
            stop = max(end + size if end < 0 else end, -1)
            x = x.index_select(axis, torch.arange(begin, stop, step, device=x.device))
    return x


def gather(node: OperatorNode) -> Run:
    axis, fixed = node.attribute("axis", 0), node.constant(1)
    if fixed is not None and fixed.dim() == 0:
        position = int(fixed)
        return lambda x, indices: x.select(axis, position)
    nonnegative = fixed is not None and bool((fixed >= 0).all())

    def run(x: Tensor, indices: Tensor) -> Tensor:
        if not nonnegative:
            indices = torch.where(indices < 0, indices + x.shape[axis], indices)
        if axis == 0 and x.dim() == 2 and x.is_floating_point():
            return F.embedding(indices.long(), x)
        picked = x.index_select(axis, indices.reshape(-1))
        at = axis % x.dim()
        return picked if indices.dim() == 1 else picked.reshape(x.shape[:at] + indices.shape + x.shape[at + 1 :])

    return run


def gather_elements(node: OperatorNode) -> Run:
    axis = node.attribute("axis", 0)
    return lambda x, indices: torch.gather(x, axis, _wrapped(indices, x.shape[axis]))


def _wrapped(indices: Tensor, size: int) -> Tensor:
    return torch.where(indices < 0, indices + size, indices).long()


def gather_nd(node: OperatorNode) -> Run:
    batch = node.attribute("batch_dims", 0)

    def run(x: Tensor, indices: Tensor) -> Tensor:
        if batch == 0:
            return x[tuple(indices.long().unbind(-1))]
        lead = x.shape[:batch]
        flat, index = x.reshape(-1, *x.shape[batch:]), indices.reshape(-1, *indices.shape[batch:]).long()
        row = torch.arange(flat.shape[0], device=x.device).reshape(-1, *[1] * (index.dim() - 2))
        picked = flat[(row, *index.unbind(-1))]
        return picked.reshape(*lead, *picked.shape[1:])

    return run


REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def scatter_nd(node: OperatorNode) -> Run:
    reduction = node.attribute("reduction", "none")

    def run(x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
        index = tuple(indices.long().unbind(-1))
        if reduction in ("none", "add"):
            return x.index_put(index, updates, accumulate=reduction == "add")
        depth = indices.shape[-1]
        flat = torch.zeros_like(index[0])
        for part, size in zip(index, x.shape):
            flat = flat * size + _wrapped(part, size)
        rows = x.reshape(math.prod(x.shape[:depth]), -1)
        target = flat.reshape(-1, 1).expand(-1, rows.shape[1])
        values = updates.reshape(-1, rows.shape[1])
        return rows.scatter_reduce(0, target, values, REDUCTIONS[reduction]).reshape(x.shape)

    return run


def scatter_elements(node: OperatorNode) -> Run:
    axis, reduction = node.attribute("axis", 0), node.attribute("reduction", "none")

    def run(x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
        index = _wrapped(indices, x.shape[axis])
        if reduction == "none":
            return x.scatter(axis, index, updates)
        return x.scatter_reduce(axis, index, updates, REDUCTIONS[reduction])

    return run


def expand(node: OperatorNode) -> Run:
    sizes_of = node.listed(1)
    # ONNX broadcasts both ways: a 1 in the wanted shape keeps the tensor's own size.
    return lambda x, sizes: x.expand(torch.broadcast_shapes(x.shape, sizes_of(sizes)))


def tile(node: OperatorNode) -> Run:
    repeats_of = node.listed(1)
    return lambda x, repeats: x.repeat(repeats_of(repeats))


def constant_of_shape(node: OperatorNode) -> Run:
    sizes_of, value = node.listed(0), node.attribute("value")
    filler = torch.zeros(()) if value is None else torch.from_numpy(value.numpy().copy()).reshape(())
    return lambda sizes: filler.expand(sizes_of(sizes)).clone()


def range_(start: Tensor, stop: Tensor, step: Tensor) -> Tensor:
    return torch.arange(start.item(), stop.item(), step.item(), dtype=start.dtype)


def one_hot(node: OperatorNode) -> Run:
    axis = node.attribute("axis", -1)

    def run(indices: Tensor, depth: Tensor, values: Tensor) -> Tensor:
        size = int(depth)
        known = (indices >= -size) & (indices < size)
        hot = F.one_hot(torch.where(known, indices, 0).long() % size, size).bool() & known.unsqueeze(-1)
        return torch.where(hot, values[1], values[0]).movedim(-1, axis)

    return run


def top_k(node: OperatorNode) -> Run:
    axis, largest, ordered = node.attribute("axis", -1), node.attribute("largest", 1), node.attribute("sorted", 1)
    count_of = node.listed(1)

    def run(x: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        (k,) = count_of(count)
        # Stable: ONNX gives the lower index first among equals; torch.topk leaves their order open.
        values, indices = torch.sort(x, dim=axis, descending=bool(largest), stable=bool(ordered))
        return values.narrow(axis, 0, k), indices.narrow(axis, 0, k)

    return run


def cumulative_sum(node: OperatorNode) -> Run:
    exclusive, reverse, axis_of = node.attribute("exclusive", 0), node.attribute("reverse", 0), node.listed(1)

    def run(x: Tensor, axis: Tensor) -> Tensor:
        (along,) = axis_of(axis)
        x = x.flip(along) if reverse else x
        total = x.cumsum(along, dtype=x.dtype)
        total = total - x if exclusive else total
        return total.flip(along) if reverse else total

    return run


def triangle(node: OperatorNode) -> Run:
    cut = torch.triu if node.attribute("upper", 1) else torch.tril
    if not node.has(1):
        return cut
    return lambda x, k: cut(x, int(k))


def depth_to_space(node: OperatorNode) -> Run:
    block, mode = node.attribute("blocksize"), node.attribute("mode", "DCR")

    def run(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        depth = c // block**2
        if mode == "DCR":
            parts = x.reshape(n, block, block, depth, h, w).permute(0, 3, 4, 1, 5, 2)
        else:
            parts = x.reshape(n, depth, block, block, h, w).permute(0, 1, 4, 2, 5, 3)
        return parts.reshape(n, depth, h * block, w * block)

    return run


def space_to_depth(node: OperatorNode) -> Run:
    block = node.attribute("blocksize")

    def run(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        parts = x.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
        return parts.reshape(n, c * block**2, h // block, w // block)

    return run


def col2im(node: OperatorNode) -> Run:
    """Add up blocks (N, C·∏block, L) where they lie in an image: torch's fold, on the padded image where pads differ."""
    image_of, block_of = node.listed(1), node.listed(2)
    dilations, strides = node.attribute("dilations", [1, 1]), node.attribute("strides", [1, 1])
    top, left, bottom, right = node.attribute("pads", [0, 0, 0, 0]) if len(strides) == 2 else [0] * 4

    def run(x: Tensor, image: Tensor, block: Tensor) -> Tensor:
        size, kernel = image_of(image), block_of(block)
        if len(size) != 2:
            raise node.refuse(f"an image of {counted(len(size), 'dimension')}")
        height, width = size
        padded = (height + top + bottom, width + left + right)
        whole = F.fold(x, padded, kernel, dilation=dilations, stride=strides)
        return whole[:, :, top : top + height, left : left + width]

    return run


def eye_like(node: OperatorNode) -> Run:
    offset = node.attribute("k", 0)
    return lambda x: torch.ones_like(x).tril(offset).triu(offset)


def reverse_sequence(node: OperatorNode) -> Run:
    time, batch = node.attribute("time_axis", 0), node.attribute("batch_axis", 1)

    def run(x: Tensor, lengths: Tensor) -> Tensor:
        rows = x.movedim((batch, time), (0, 1))
        steps = torch.arange(rows.shape[1], device=x.device)
        length = lengths.reshape(-1, 1)
        index = torch.where(steps < length, length - 1 - steps, steps)
        picked = rows[torch.arange(rows.shape[0], device=x.device).reshape(-1, 1), index]
        return picked.movedim((0, 1), (batch, time))

    return run


SHAPE: dict[str, Builder] = {
    "Col2Im": col2im,
    "Concat": concat,
    "ConstantOfShape": constant_of_shape,
    "CumSum": cumulative_sum,
    "DepthToSpace": depth_to_space,
    "Expand": expand,
    "EyeLike": eye_like,
    "Flatten": flatten,
    "Gather": gather,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "NonZero": plain(lambda x: torch.nonzero(x).t()),
    "OneHot": one_hot,
    "Range": plain(range_),
    "Reshape": reshape,
    "ReverseSequence": reverse_sequence,
    "ScatterElements": scatter_elements,
    "ScatterND": scatter_nd,
    "Shape": shape,
    "Size": plain(lambda x: torch.tensor(x.numel(), dtype=torch.int64)),
    "Slice": slice_,
    "SpaceToDepth": space_to_depth,
    "Split": split,
    "Squeeze": squeeze,
    "Tile": tile,
    "TopK": top_k,
    "Transpose": transpose,
    "Trilu": triangle,
    "Unsqueeze": unsqueeze,
}
