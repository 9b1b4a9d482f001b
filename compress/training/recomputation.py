"""Gradient checkpointing: activations of chosen blocks are dropped, then recomputed in the backward pass."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from compress.errors import InputError, nearest
from compress.training.forwards import forwards


@contextlib.contextmanager
def recomputed(module: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Recompute the named blocks of `module` for the length of a `with` block.

    A name is that of a submodule (`layer2`), or `features:4`, which cuts an `nn.Sequential` into
    four segments of which all but the last are recomputed. `.` is the model itself.

    Raises:
        InputError: a name that `module` does not have, or segments of something not sequential.
    """
    with forwards({block: forward for block, forward in (_replacement(module, name) for name in names)}):
        yield


def _replacement(module: nn.Module, name: str) -> tuple[nn.Module, Callable[..., Any]]:
    path, _, count = name.partition(":")
    blocks = dict(module.named_modules())
    blocks["."] = module
    if path not in blocks or path == "":
        raise InputError(f"recompute: the model has no layer {path!r}; {nearest(path, [key for key in blocks if key])}")
    block = blocks[path]
    if not count:
        return block, functools.partial(_recompute, block, block.forward)
    if not isinstance(block, nn.Sequential):
        raise InputError(
            f"recompute: {path!r} is a {type(block).__name__}; only an nn.Sequential can be cut into segments"
        )
    if not count.isdigit() or not 1 <= int(count) <= len(block):
        raise InputError(f"recompute: segments of {path!r} must be 1 to {len(block)}, got {count!r}")
    return block, functools.partial(_in_segments, block, int(count))


def _in_segments(block: nn.Sequential, count: int, value: Any) -> Any:
    layers = list(block)
    bounds = [round(index * len(layers) / count) for index in range(count + 1)]
    for start, stop in itertools.pairwise(bounds):
        part = layers[start:stop]
        # Nothing is gained by recomputing the last segment: its backward pass begins at once.
        value = (
            _chain(part, value) if stop == len(layers) else _recompute(block, functools.partial(_chain, part), value)
        )
    return value


def _chain(layers: Sequence[nn.Module], value: Any) -> Any:
    for layer in layers:
        value = layer(value)
    return value


def _recompute(block: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not block.training:
        return forward(*args, **kwargs)
    contexts = functools.partial(_contexts, block)
    return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)


def _contexts(
    block: nn.Module,
) -> tuple[contextlib.AbstractContextManager[Any], contextlib.AbstractContextManager[Any]]:
    return contextlib.nullcontext(), _statistics_kept(block)


@contextlib.contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """The second forward pass must not move the running statistics of batch-norm a second time."""
    norms = [part for part in block.modules() if isinstance(part, _BatchNorm)]
    before = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked = norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, momentum, tracked in before:
            norm.momentum, norm.num_batches_tracked = momentum, tracked
