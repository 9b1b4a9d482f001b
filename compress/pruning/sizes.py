"""Several sizes of one network from one analysis: channels found, scored and priced once, then cut for each amount."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Unpack

import torch
from torch import nn

from compress.batches import example_batch
from compress.errors import PruningError
from compress.given import model_of
from compress.options import spelled_out
from compress.pruning.amounts import check_amounts
from compress.pruning.analysis import Analysis, analysed
from compress.pruning.prune import check_module, prune, prune_channels
from compress.pruning.request import PruneFields, PruneRequest
from compress.steps import Step
from compress.taking import takes


@takes()
def prune_sizes(
    module: nn.Module,
    example_inputs: Any,
    amounts: Sequence[float],
    request: PruneRequest | None = None,
    **fields: Unpack[PruneFields],
) -> dict[float, Step]:
    """Prune one network to several amounts; each result is what `prune` gives for that amount alone.

    Args:
        module: as for `prune`. It is not touched.
        example_inputs: as for `prune`.
        amounts: the fractions to remove.
        request: what to remove; `fields` are those of `PruneRequest` spelled out, but for `amount`.

    Returns:
        The Step of each amount, the least first. Healing has its seconds for each of them.

    Raises:
        PruningError: as `prune`; an amount that is given twice, or none.
        InputError: an option that does not exist.
    """
    request = spelled_out(PruneRequest, request, fields, "prune_sizes")
    module = model_of(module)
    check_module(module)
    return dict(each_size(module, example_inputs, check_amounts(amounts), request))


def each_size(
    module: nn.Module, example_inputs: Any, amounts: Sequence[float], request: PruneRequest
) -> Iterator[tuple[float, Step]]:
    """The same, one after the other, so that a caller can finish with one before the next is made."""
    if not request.remove_channels:
        raise PruningError("several amounts are of channels that go; masks keep every size, so give one amount")
    analysis: Analysis | None = None
    for amount in amounts:
        wanted = replace(request, amount=amount)
        if request.target == "blocks":
            yield amount, prune(module, example_inputs, wanted)
            continue
        if analysis is None:
            with torch.no_grad():
                analysis = analysed(module, example_batch(example_inputs), wanted)
        yield amount, prune_channels(module, example_inputs, wanted, analysis=analysis).step
