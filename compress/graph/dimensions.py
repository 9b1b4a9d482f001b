"""Which dimensions of a model's inputs stay free in the exported graph, and under which names.

What the user writes                what is free
    (nothing)                       the batch; the length of integer inputs (N, L) too, where the graph holds at other lengths
    batch                           dimension 0 of every input
    batch,sequence                  and the length: dimension 1 of integer inputs (N, L), of other inputs where there is none
    batch,height,width              and dimensions 2 and 3 of images (N, C, H, W)
    x:0,2,3                         just these dimensions of the input `x`; several inputs one after the other: x:0,2 y:0
    none                            nothing
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from compress.batches import Batch
from compress.counting import counted
from compress.errors import InputError, nearest

BATCH, SEQUENCE = "batch", "sequence"
_IMAGES = {"height": 2, "width": 3}
NAMES = (BATCH, SEQUENCE, *_IMAGES)
NONE = "none"

Dynamic = str | bool | Sequence[str] | Mapping[str, Sequence[int]] | None
"""None is the default; see the forms at the top of this file. A mapping gives the dimensions of each input."""

Axes = dict[str, dict[int, str]]  # input → dimension → its name in the graph


@dataclass(frozen=True)
class Wanted:
    """What the user asked for. `named` may be empty; `axes` are of single inputs; neither, with `given`, is nothing at all."""

    named: tuple[str, ...] = (BATCH,)
    axes: tuple[tuple[str, tuple[int, ...]], ...] = ()
    given: bool = False  # set by the user, so that what does not work is refused

    @classmethod
    def of(cls, value: Dynamic | Wanted) -> Wanted:
        """Read what the user wrote.

        Raises:
            InputError: a name that is none of `NAMES`, a dimension that is no number.
        """
        if isinstance(value, Wanted):
            return value
        if value is None or value is True:
            return cls()
        if value is False:
            return cls((), (), True)
        if isinstance(value, Mapping):
            return cls((), tuple((str(name), _numbers(name, axes)) for name, axes in value.items()), True)
        words = value.split() if isinstance(value, str) else [word for item in value for word in str(item).split()]
        named: list[str] = []
        axes: list[tuple[str, tuple[int, ...]]] = []
        for word in words:
            name, colon, listed = word.rpartition(":")
            if colon:
                axes.append((name, _numbers(name, listed.split(","))))
            else:
                named += [part for part in word.split(",") if part and part != NONE]
        for name in named:
            if name not in NAMES:
                raise InputError(
                    f"unknown dimension {name!r} to keep dynamic; {nearest(name, (*NAMES, NONE))}, or give INPUT:0,2"
                )
        return cls(tuple(dict.fromkeys(named)), tuple(axes), True)

    def axes_of(self, inputs: Mapping[str, Tensor], samples: int) -> Axes:
        """The dimensions to keep free of a model's `inputs`, by name.

        Raises:
            InputError: an input, or a dimension, that is not there.
        """
        found: Axes = {name: {} for name in inputs}
        if BATCH in self.named:
            for name, value in inputs.items():
                if value.dim() and len(value) == samples:
                    found[name][0] = BATCH
        if SEQUENCE in self.named:
            for name in lengths(inputs, explicit=self.given):
                found[name][1] = SEQUENCE
        for word in set(self.named) & set(_IMAGES):
            pictures = [name for name, value in inputs.items() if value.dim() == 4]
            if not pictures:
                raise InputError(f"no input has the dimension {word!r}: none is an image (N, C, H, W)")
            for name in pictures:
                found[name][_IMAGES[word]] = word
        for name, axes in self.axes:
            if name not in inputs:
                raise InputError(f"the model has no input {name!r} to keep dynamic; {nearest(name, inputs)}")
            for axis in axes:
                if axis >= inputs[name].dim():
                    raise InputError(
                        f"input {name!r} has {counted(inputs[name].dim(), 'dimension')}, and {axis} is to be dynamic"
                    )
                found[name][axis] = BATCH if axis == 0 else f"{name}_{axis}"
        return found


def lengths(inputs: Mapping[str, Tensor], *, explicit: bool = False) -> list[str]:
    """The inputs whose dimension 1 is a length: token ids (N, L) and what is as long; `explicit`: of floats if need be.

    Raises:
        InputError: `explicit`, and none has one.
    """
    ids = [value for value in inputs.values() if value.dim() == 2 and not value.is_floating_point()]
    if ids:
        return [n for n, v in inputs.items() if v.dim() >= 2 and any(v.shape[:2] == own.shape for own in ids)]
    if not explicit:
        return []
    found = [name for name, value in inputs.items() if value.dim() in (2, 3)]
    if not found:
        raise InputError("no input has the dimension 'sequence': none is of shape (N, L) or (N, L, features)")
    return found


def shapes_for_export(inputs: Mapping[str, Tensor], axes: Axes) -> dict[str, dict[int, Any]]:
    """What `torch.export` takes as dynamic_shapes, by input."""
    return {name: dict.fromkeys(axes.get(name, {}), torch.export.Dim.DYNAMIC) for name in inputs}


def resized(batch: Batch, names: Sequence[str], axes: Axes, symbol: str, size: int) -> Batch:
    """The batch with every dimension called `symbol` cut, or filled with its own beginning, to `size`.

    `names` are the model's names of the batch's inputs, in the batch's order.
    """
    values = {}
    for key, name, value in zip(batch.inputs, names, batch.values):
        for axis, found in axes.get(name, {}).items():
            if found == symbol:
                places = torch.arange(size) % value.shape[axis]
                value = value.index_select(axis, places)
        values[key] = value
    changed = Batch.of(values)
    return Batch(values, batch.target, changed.samples, batch.named)


def sizes(inputs: Mapping[str, Tensor], axes: Axes) -> dict[str, int]:
    """The present size of every dimension that is to be free, by its name; the batch left out."""
    return {
        symbol: inputs[name].shape[axis]
        for name, found in axes.items()
        for axis, symbol in found.items()
        if symbol != BATCH
    }


def name_dimensions(graph: ir.Model, axes: Axes) -> None:
    """Give, in place, the free dimensions of the inputs their names everywhere, where the exporter calls them s77 or the like."""
    names: dict[str, str] = {}
    for value in graph.graph.inputs:
        for axis, name in axes.get(str(value.name), {}).items():
            dim = value.shape[axis] if value.shape is not None and axis < len(value.shape) else None
            if isinstance(dim, ir.SymbolicDim) and dim.value is not None:
                names.setdefault(str(dim.value), name)
    names = {symbol: name for symbol, name in names.items() if symbol != name}
    if not names:
        return
    pattern = re.compile("|".join(rf"\b{re.escape(symbol)}\b" for symbol in names))
    for part in graph.graphs():
        for value in (*part.inputs, *(output for node in part for output in node.outputs)):
            _renamed(value, pattern, names)


def free(graph: ir.Model) -> frozenset[str]:
    """The names of the dimensions that a graph's inputs leave free."""
    shapes = [value.shape for value in graph.graph.inputs if value.shape is not None]
    return frozenset(str(dim) for shape in shapes for dim in shape if not isinstance(dim, int))


def _renamed(value: ir.Value, pattern: re.Pattern[str], names: Mapping[str, str]) -> None:
    if value.shape is None or value.shape.frozen:
        return
    for axis, dim in enumerate(value.shape):
        if isinstance(dim, ir.SymbolicDim) and dim.value is not None and pattern.search(str(dim.value)):
            value.shape[axis] = pattern.sub(lambda found: names[found[0]], str(dim.value))


def _numbers(name: str, axes: Iterable[Any]) -> tuple[int, ...]:
    try:
        found = tuple(int(axis) for axis in axes)
    except (TypeError, ValueError):
        found = (-1,)
    if not found or min(found) < 0:
        raise InputError(f"the dynamic dimensions of {name!r} are whole numbers from 0, as in {name}:0,2")
    return found
