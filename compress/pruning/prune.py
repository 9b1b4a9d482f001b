"""The verb: `compress.prune`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from compress.batches import Batch, example_batch, reiterable
from compress.errors import PruningError
from compress.pruning.blocks import prune_blocks
from compress.pruning.denormals import flush_denormals
from compress.pruning.masks import MaskRequest, mask_weights
from compress.pruning.naming import as_patterns
from compress.pruning.reconstruction import reconstructed
from compress.pruning.removal import Removal, Request, remove_channels
from compress.pruning.selection import Selection
from compress.pruning.surgery import kept_outputs
from compress.steps import Step


def prune(
    module: nn.Module,
    example_inputs: Any = None,
    *,
    amount: float = 0.5,
    method: str | Callable[[Tensor], Tensor] = "l1",
    scope: str = "uniform",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    remove_channels: bool = True,
    seed: int = 0,
    **options: Any,
) -> Step:
    """Remove channels (the default), or mask weights: return a pruned copy of the module.

    Args:
        module: any module that `torch.export` takes. It is not touched.
        example_inputs: a batch of 2 in any form of `batches.example_batch`. Masks need none.
        amount: the fraction to remove. For masks also a count (a whole number) per layer.
        method: score by which the least important go. Channels: l1, l2, random, batchnorm, taylor (needs `data`),
            fpgm, or a function from filters (n, elements) to scores (n). Masks: l1, random, ln, random-structured,
            or a pattern such as 2:4.
        scope: "uniform" prunes the same fraction everywhere; "global" ranks the whole model together.
        include, exclude: names of layers or modules, `*` allowed; only these, all but these.
        remove_channels: False masks weights with zeros instead (options: those of `MaskRequest`, and `permanent`).
        options: `target`, `round_to`, `data`, `loss`, `latency`, `reconstruct`; see `prune_channels`. `target="blocks"`
            removes residual blocks whole, the fraction `amount` of them, scored on `data` by what the outputs lose.

    Returns:
        A Step whose changes give, per layer, channels before and after, or why they stay (for masks: the zeros).

    Raises:
        PruningError: an argument is out of range, a name is unknown, or the target cannot be reached.
        ExportError: `torch.export` cannot take the module.
    """
    if not isinstance(module, nn.Module):
        raise PruningError(
            f"pruning works on a torch.nn.Module, not on {type(module).__name__}; prune before exporting"
        )
    if options.get("data") is not None:
        options["data"] = reiterable(options["data"])  # scores go through it, then reconstruction
    shared: dict[str, Any] = {"include": as_patterns(include), "exclude": as_patterns(exclude), "seed": seed}
    if not remove_channels:
        if options.pop("reconstruct", False):
            raise PruningError(
                "masks keep the weights that they leave; reconstruct=True fits those: leave one of the two out"
            )
        permanent = options.pop("permanent", True)
        request = MaskRequest(method=str(method), amount=amount, scope=scope, **shared, **options)
        return mask_weights(module, request, permanent=permanent)
    if options.get("target") == "blocks":
        return _blocks(module, example_inputs, amount=amount, method=method, scope=scope, **shared, **options)
    return prune_channels(module, example_inputs, amount=amount, method=method, scope=scope, **shared, **options).step


def _batch(inputs: Any) -> Batch:
    if inputs is None:
        raise PruningError("removing channels needs example_inputs: tensors, batch first, a batch of 2")
    return example_batch(inputs)


def _blocks(
    module: nn.Module,
    example_inputs: Any,
    *,
    amount: float,
    include: Sequence[str],
    exclude: Sequence[str],
    data: Iterable[Any] | None = None,
    reconstruct: bool = False,
    **options: Any,
) -> Step:
    """Remove blocks; the options that choose among channels are refused, not left unheeded."""
    for name, default in (("method", "l1"), ("scope", "uniform"), ("round_to", None)):
        if options.get(name, default) != default:
            raise PruningError(f"{name} {options[name]!r} chooses among channels; leave it out with target 'blocks'")
    step = prune_blocks(module, _batch(example_inputs), amount=amount, include=include, exclude=exclude, data=data)
    if reconstruct:
        step = reconstructed(step, module, data)
    flush_denormals(step.model)
    return step


def prune_channels(
    module: nn.Module,
    example_inputs: Any,
    *,
    scope: str = "uniform",
    round_to: int | None = None,
    original: Mapping[str, int] | None = None,
    reconstruct: bool = False,
    **options: Any,
) -> Removal:
    """Remove channels, really: a copy with smaller layers, and what went by its labels.

    The pruned module's outputs are those of the original with everything zeroed that read the removed channels;
    this is checked on `example_inputs` each time. For normalization over channels, zeroed means left out of the
    statistics.

    Args (beside those of `prune`):
        round_to: leave multiples of this many channels. By default 16 where a layer is wide enough, less in narrow ones.
        original: `selection.widths` at the start of a run of several steps; `amount` is then the total.
        reconstruct: fit the weights that stay to what their layers gave before, on `data`; see `reconstruction`. The
            result then differs from the zeroed original, for the better.
        options: the other fields of `Request`: `target`, `data`, `loss`, `latency`, ….
    """
    if not isinstance(module, nn.Module):
        raise PruningError(
            f"pruning works on a torch.nn.Module, not on {type(module).__name__}; prune before exporting"
        )
    inputs = _batch(example_inputs)
    selection = Selection(scope=scope, round_to=round_to, original=original)
    request = Request(selection=selection, **options)
    with torch.no_grad():
        removal = remove_channels(module, inputs, request)
    if reconstruct:
        kept = kept_outputs(module, removal.channels, removal.removed)
        removal = replace(removal, step=reconstructed(removal.step, module, request.data, kept))
    flush_denormals(removal.step.model)
    return removal
