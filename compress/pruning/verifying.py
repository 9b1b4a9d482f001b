"""Compares the outputs of the pruned module with those of the zeroed one; where they differ, finds the layers that cause it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from compress.batches import Batch, call
from compress.pruning.channels import Channels, Family
from compress.pruning.labels import core, kept_places
from compress.pruning.trace import Labelled, module_of
from compress.pruning.zeroing import zeroed_nodes, zeroed_outputs
from compress.state import evaluating, slow_attention

MOST = 6  # families locked for one size, beyond which all are that pass through the forward
TOLERANCE = 1e-3  # of the largest output; float rounding over a hundred layers stays well below


@dataclass(frozen=True)
class Failure:
    """A module whose forward does not follow: the path of it (or of the layer right after), and what happened."""

    path: str
    reason: str


@dataclass(frozen=True)
class Agreement:
    """Largest difference of the outputs, relative to the largest output."""

    error: float


def check(
    candidate: nn.Module, module: nn.Module, channels: Channels, removed: np.ndarray, inputs: Batch | tuple[Tensor, ...]
) -> Agreement | Failure:
    """Run the pruned module against the zeroed original."""
    inputs = Batch.of(inputs)
    outputs, seen, failure = _watched(candidate, inputs)
    if failure is not None:
        return failure
    error = difference(outputs, zeroed_outputs(module, channels, removed, inputs))
    if error <= TOLERANCE:
        return Agreement(error)
    _, nodes = zeroed_nodes(module, channels, removed, inputs)  # once more, with what the layers gave on the way
    return _first_difference(channels, removed, seen, nodes) or Failure("", "outputs differ from the zeroed original's")


def agree(first: Any, second: Any, tolerance: float = TOLERANCE) -> bool:
    return difference(first, second) <= tolerance


def difference(first: Any, second: Any) -> float:
    """Largest difference between corresponding outputs, relative to the largest value; inf where shapes differ."""
    worst = 0.0
    for a, b in zip(*(tensors_of(item) for item in (first, second)), strict=False):
        if a.shape != b.shape:
            return float("inf")
        if not a.numel():
            continue
        a, b = a.double(), b.double()
        finite = torch.isfinite(b)
        if not torch.equal(finite, torch.isfinite(a)):
            return float("inf")
        top = float(b[finite].abs().max()) if bool(finite.any()) else 0.0
        gap = float((a - b)[finite].abs().max()) if bool(finite.any()) else 0.0
        worst = max(worst, gap / max(top, 1e-12) if gap else 0.0)
    return worst


def tensors_of(value: Any) -> list[Tensor]:
    return [item for item in pytree.tree_leaves(value) if isinstance(item, Tensor)]


def _watched(module: nn.Module, inputs: Batch) -> tuple[Any, list[tuple[str, Tensor]], Failure | None]:
    """Run a module; return its outputs, those of its layers in order, and where it stopped."""
    stack: list[str] = []
    seen: list[tuple[str, Tensor]] = []
    handles = []

    def enter(name: str) -> Any:
        return lambda part, args: stack.append(name)

    def leave(name: str, leaf: bool) -> Any:
        def hook(part: nn.Module, args: Any, output: Any) -> None:
            stack.pop()
            if leaf and isinstance(output, Tensor):
                seen.append((name, output))

        return hook

    for name, part in module.named_modules():
        handles.append(part.register_forward_pre_hook(enter(name)))
        handles.append(part.register_forward_hook(leave(name, not list(part.children()))))
    try:
        with slow_attention(), evaluating(module):
            return call(module, inputs), seen, None
    except Exception as error:
        line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        return None, seen, Failure(stack[-1] if stack else "", line[:160])
    finally:
        for handle in handles:
            handle.remove()


def _first_difference(
    channels: Channels, removed: np.ndarray, seen: list[tuple[str, Tensor]], nodes: dict[Any, Any]
) -> Failure | None:
    """Compare layer by layer: the first whose output differs from the zeroed run's kept part."""
    gone = torch.from_numpy(channels.gone(removed))
    by_layer: dict[str, list[Any]] = {}
    for node, value in nodes.items():
        by_layer.setdefault(module_of(node), []).append((node, value))
    for name, output in seen:
        for node, value in reversed(by_layer.get(name, [])):
            kept = kept_part(channels, gone, node, value)
            if kept is not None and kept.shape == output.shape and agree(output, kept):
                break
        else:
            if by_layer.get(name):
                return Failure(name, "output differs from the zeroed original's")
    return None


def kept_part(channels: Channels, gone: Tensor, node: Any, value: Any) -> Tensor | None:
    """Cut a value of the zeroed run to what stays of it."""
    labelled = channels.labels.get(node)
    if not isinstance(labelled, Labelled) or labelled.labels is None or not isinstance(value, Tensor):
        return None
    for dim, places in kept_places(labelled.labels, gone).items():
        value = value.index_select(dim, places)
    return value


def outer(channels: Channels, path: str) -> str:
    """Return the nearest module around `path` whose own forward ran: not the list or dict that a layer is kept in."""
    ran = {place.split("@")[0] for node in channels.labels for place, _ in _stack(node)}
    while path:
        path = path.rpartition(".")[0]
        if path in ran:
            break
    return path


def _stack(node: Any) -> list[tuple[str, Any]]:
    return list((node.meta.get("nn_module_stack") or {}).values())


def passing(channels: Channels, path: str, removed: np.ndarray) -> list[Family]:
    """Return the families that lose channels and pass through the forward of a module, or of the one around it.

    A stream that attention reads comes last: to keep its heads may be enough.
    """
    found = _passing(channels, path, removed) | _passing(channels, outer(channels, path), removed)
    families = [family for family in channels.families if found & set(family.classes.tolist())]
    streams = np.concatenate([np.zeros(0, dtype=np.int64), *(tie.stream for tie in channels.ties)])
    return sorted(families, key=lambda family: bool(np.isin(family.classes, streams).any()))


def nearest_passing(channels: Channels, path: str, removed: np.ndarray) -> list[Family]:
    """Those of the module's own forward, or where there are none, of the one around it."""
    found = _passing(channels, path, removed) or _passing(channels, outer(channels, path), removed)
    return [family for family in channels.families if found & set(family.classes.tolist())]


def _passing(channels: Channels, place: str, removed: np.ndarray) -> set[int]:
    flags = np.zeros(channels.root.size, dtype=bool)
    flags[removed] = True
    found: set[int] = set()
    for node, labelled in channels.labels.items():
        if node.op != "call_function" or module_of(node) != place or not isinstance(labelled, Labelled):
            continue
        if labelled.param is None and labelled.labels is not None:
            labels = np.unique(core(labelled.labels).numpy())
            roots = np.unique(channels.root[labels[labels > 0]])
            found |= set(roots[flags[roots]].tolist())
    return found


def fewest(families: Sequence[Family], enough: Callable[[Sequence[Family]], bool]) -> list[Family]:
    """Find by bisection a part of `families`, all of which are enough, that none can be left out of.

    The shortest enough beginning ends in one that is needed; with that one held, the same again, until those found are
    enough. This takes about log2(n) tries for each; past `MOST` of them it is no single size, and all are returned.
    """
    found: list[Family] = []
    rest = list(families)
    while rest and not (found and enough(found)):
        if len(found) == MOST:
            return list(families)
        low, high = 1, len(rest)
        while low < high:
            middle = (low + high) // 2
            if enough([*found, *rest[:middle]]):
                high = middle
            else:
                low = middle + 1
        found.append(rest[high - 1])
        rest = rest[: high - 1]
    return found
