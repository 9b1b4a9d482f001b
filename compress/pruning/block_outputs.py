"""Which channels of each module's output stay, from the labels: so that a pruned network can be held to the unpruned."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from compress.pruning.channels import Channels
from compress.pruning.labels import kept_places
from compress.pruning.trace import Labelled


def kept_of_blocks(channels: Channels, removed: np.ndarray) -> dict[str, dict[int, Tensor]]:
    """For each module, by the last value that its forward made: dimension → places that stay, where some go."""
    gone = torch.from_numpy(channels.gone(removed))
    last: dict[str, Labelled] = {}
    for node, labelled in channels.labels.items():
        if (
            node.op != "call_function"
            or not isinstance(labelled, Labelled)
            or labelled.labels is None
            or labelled.param is not None
        ):
            continue
        for path, _ in (node.meta.get("nn_module_stack") or {}).values():
            last[path.split("@")[0]] = labelled
    found = {}
    for path, labelled in last.items():
        assert labelled.labels is not None
        kept = kept_places(labelled.labels, gone)
        if kept:
            found[path] = kept
    return found
