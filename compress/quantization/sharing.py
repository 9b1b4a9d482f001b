"""One calibration for several forms of a network: what was seen of a tensor serves every graph in which it is the same.

Graphs that are made for different runtimes differ by rewrites, which keep the names of the tensors around them. A tensor
of one name is taken for the same where both graphs give it the same values on two samples; the others are observed anew.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from compress.batches import Batch
from compress.errors import CompressError
from compress.quantization.bias_correction import ChannelMeans
from compress.quantization.calibration import all_rows, two_samples
from compress.quantization.ranges.observer import Observer, RangeMethod
from compress.runtimes.onnxruntime import Session

SAME = 1e-4  # of a tensor's largest value: what summing in another order changes


@dataclass
class Seen:
    """One pass over calibration data: which graph, which data, how, and what it left."""

    graph: ir.Model
    data: Any
    method: RangeMethod
    observers: Mapping[str, Observer]
    means: ChannelMeans


@dataclass
class Shared:
    """What the passes within one `sharing()` have seen, and for how many tensors a later graph took it."""

    profiles: tuple[str, ...] = ()  # of the forms that will be made, so that the first pass can see their tensors too
    seen: list[Seen] = field(default_factory=list)
    taken: int = 0
    asked: int = 0


_current: ContextVar[Shared | None] = ContextVar("shared_calibration", default=None)


@contextlib.contextmanager
def sharing(profiles: Iterable[str] = ()) -> Iterator[Shared]:
    """Within the block, calibrations on the same data by the same method take what one before them has seen.

    `profiles` names those (of `profiles.PROFILES`) for which forms will be made.
    """
    token = _current.set(shared := Shared(tuple(profiles)))
    try:
        yield shared
    finally:
        _current.reset(token)


def wanted_later(data: Any, method: RangeMethod) -> tuple[str, ...]:
    """The profiles whose tensors the coming pass is to see as well: those of the block, where it is the first of its kind."""
    shared = _current.get()
    return shared.profiles if shared is not None and _found(shared, data, method) is None else ()


def keep(
    graph: ir.Model, data: Any, method: RangeMethod, observers: Mapping[str, Observer], means: ChannelMeans
) -> None:
    """Keep what the first pass of this data and method saw, before anybody merges it; nothing outside of `sharing()`."""
    shared = _current.get()
    if shared is not None and _found(shared, data, method) is None:
        shared.seen.append(Seen(graph, _source(data), method, copy.deepcopy(dict(observers)), copy.deepcopy(means)))


def take(
    graph: ir.Model, names: Iterable[str], axes: Mapping[str, int], data: Iterable[Any], method: RangeMethod
) -> tuple[dict[str, Observer], ChannelMeans]:
    """Observers and channel means of those tensors of `graph` that an earlier pass has seen; copies, the caller's own."""
    shared = _current.get()
    seen = None if shared is None else _found(shared, data, method)
    means = ChannelMeans(dict(axes))
    if shared is None or seen is None:
        return {}, means
    names = list(names)
    wanted = dict.fromkeys(
        [*(name for name in names if name in seen.observers), *(n for n in axes if n in seen.means.sums)]
    )
    same = _same(seen.graph, graph, list(wanted), two_samples(data))
    observers = {name: copy.deepcopy(seen.observers[name]) for name in names if name in same and name in seen.observers}
    for name, axis in axes.items():
        if name in same and name in seen.means.sums and seen.means.axes[name] == axis:
            means.sums[name], means.counts[name] = seen.means.sums[name].copy(), seen.means.counts[name]
    shared.taken, shared.asked = shared.taken + len(observers), shared.asked + len(names)
    return observers, means


def _found(shared: Shared, data: Any, method: RangeMethod) -> Seen | None:
    source = _source(data)
    return next((item for item in shared.seen if item.data is source and item.method == method), None)


def _source(data: Any) -> Any:
    """What tells one set of samples from another: the data set of a loader, which is made anew for each pass."""
    return getattr(data, "dataset", data)


def _same(first: ir.Model, second: ir.Model, names: list[str], few: Batch) -> Collection[str]:
    """The tensors to which both graphs give the same values."""
    there = {str(value.name) for node in second.graph for value in node.outputs}
    there |= {str(value.name) for value in second.graph.inputs}
    names = [name for name in names if name in there]
    if not names:
        return ()
    try:
        pairs = [all_rows(Session(graph, outputs=names, arena=False), few) for graph in (first, second)]
    except CompressError:  # a form that does not run on two samples: nothing is taken for the same
        return ()
    return {name for name, one, other in zip(names, *pairs) if _equal(one, other)}


def _equal(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and bool(
        np.allclose(one, other, rtol=0, atol=SAME * float(np.abs(one).max(initial=0)))
    )
