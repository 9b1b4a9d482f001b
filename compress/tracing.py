"""The one door to `torch.export`: one thread at a time, and torch's own state given back when it fails there.

While it runs, torch.export patches `nn.Module.__call__` and keeps stacks of modes for the whole process; two at once
break each other ("Trying to pop empty mode stack"), and one that fails can leave the patches in place.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import threading
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from compress.state import Borrowed, kept_attention

_ALONE = threading.RLock()
_PATCHED = ("__call__", "__getattr__", "__setattr__", "_call_impl", "register_buffer", "register_parameter")
_ABSENT = object()


@contextlib.contextmanager
def tracing() -> Iterator[None]:
    """Hold torch's tracing machinery for a block; other threads of this process wait."""
    with _ALONE, kept_attention():
        own = {name: vars(nn.Module).get(name, _ABSENT) for name in _PATCHED}
        try:
            yield
        finally:
            for name, value in own.items():
                if vars(nn.Module).get(name, _ABSENT) is value:
                    continue
                if value is _ABSENT:
                    delattr(nn.Module, name)
                else:
                    setattr(nn.Module, name, value)


def traced(
    module: nn.Module,
    positional: tuple[Any, ...],
    named: dict[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    strict: bool = False,
) -> torch.export.ExportedProgram:
    """`torch.export.export`, alone; whatever it raises passes."""
    with tracing(), regular_bags():
        return torch.export.export(module, positional, named, dynamic_shapes=dynamic_shapes, strict=strict)


@contextlib.contextmanager
def regular_bags() -> Iterator[None]:
    """Trace bags of one length (indices of rank 2) as a look-up and a reduction; torch's own form is a loop in ONNX."""
    original = functional.embedding_bag

    def run(input: Tensor, weight: Tensor, offsets: Tensor | None = None, *rest: Any, **named: Any) -> Tensor:
        asked = inspect.signature(original).bind(input, weight, offsets, *rest, **named)
        asked.apply_defaults()
        if input.dim() != 2 or offsets is not None or asked.arguments["max_norm"] is not None:
            return original(*asked.args, **asked.kwargs)
        arguments = asked.arguments
        return _bag(input, weight, arguments["mode"], arguments["per_sample_weights"], arguments["padding_idx"])

    functional.embedding_bag = run
    try:
        yield
    finally:
        functional.embedding_bag = original


def _bag(indices: Tensor, weight: Tensor, mode: str, factors: Tensor | None, padding: int | None) -> Tensor:
    """Sum, mean or maximum (N, D) of the rows that indices (N, L) name; entries of `padding` do not count."""
    rows = functional.embedding(indices, weight)
    if factors is not None:
        rows = rows * factors[..., None]
    if padding is None:
        return rows.amax(1) if mode == "max" else rows.mean(1) if mode == "mean" else rows.sum(1)
    kept = (indices != padding % weight.shape[0])[..., None]
    counted = kept.sum(1).clamp(min=1)
    if mode == "max":  # a bag of padding alone is 0, as in torch
        return torch.where(kept.any(1), rows.masked_fill(~kept, torch.finfo(rows.dtype).min).amax(1), 0.0)
    total = (rows * kept).sum(1)
    return total / counted if mode == "mean" else total


@contextlib.contextmanager
def exact_zeros() -> Iterator[None]:
    """Let the exporter's rewriting take only 0 for 0; within 1e-8 it drops the epsilon of x / (|x| + 1e-12).

    onnxscript compares constants by `math.isclose(value, expected, rel_tol, abs_tol=1e-8)` in its matcher, and has no
    option for it. Where a version compares otherwise, nothing is changed. Threads may be here at once: the last one out
    gives the matcher its own comparison back.
    """
    try:
        from onnxscript.rewriter import _matcher as matcher
    except ImportError:
        yield
        return
    names = vars(matcher)
    if names.get("math") not in (math, _EXACT):
        yield
        return
    with _GUARD:
        matching = _MATCHING.setdefault(
            "math", Borrowed(lambda: names["math"], lambda value: names.update(math=value), _EXACT)
        )
    with matching():
        yield


def _isclose(a: float, b: float, *, rel_tol: float = 1e-9, abs_tol: float = 0.0) -> bool:
    return math.isclose(a, b, rel_tol=rel_tol, abs_tol=0.0 if b == 0 else abs_tol)


_EXACT = types.SimpleNamespace(**{**vars(math), "isclose": _isclose})
_MATCHING: dict[str, Borrowed] = {}  # made on first use: onnxscript is imported late
_GUARD = threading.Lock()
